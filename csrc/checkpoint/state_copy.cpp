#include "checkpoint/state_copy.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "dist/pinned.h"

namespace mgm {
namespace {

constexpr int64_t kAlign = 128;        // elements between copies
constexpr uint64_t kPiece = 64 << 20;  // bytes of one memcpy

int64_t aligned_numel(const at::Tensor& tensor) {
  return (tensor.numel() + kAlign - 1) / kAlign * kAlign;
}

}  // namespace

StateCopy::StateCopy(std::vector<ShardTensor> sources) : sources_(std::move(sources)) {
  for (const ShardTensor& source : sources_) {
    MGM_CHECK(source.values.is_contiguous() && source.values.scalar_type() == at::kFloat,
              source.name, " is not contiguous fp32");
    numel_ += aligned_numel(source.values);
    if (source.values.is_cuda()) device_ = source.values.device();
  }
}

void StateCopy::allocate() {
  at::Tensor slab;
  if (device_) {
    const c10::DeviceGuard guard(*device_);
    slab = pinned_tensor(numel_, at::kFloat);
    const c10::impl::VirtualGuardImpl gpu(device_->type());
    stream_ = gpu.getStreamFromGlobalPool(*device_);
    copied_.emplace(device_->type(), c10::EventFlag::BACKEND_DEFAULT);
    reached_.emplace(device_->type(), c10::EventFlag::BACKEND_DEFAULT);
  } else {
    slab = at::empty({numel_}, at::kFloat);
  }
  int64_t at = 0;
  for (const ShardTensor& source : sources_) {
    copies_.push_back({source.name, slab.narrow(0, at, source.values.numel())});
    at += aligned_numel(source.values);
  }
}

void StateCopy::start() {
  whole_ = held_ = false;
  failure_ = nullptr;
  if (!device_) return;
  const at::NoGradGuard no_grad;
  const c10::impl::VirtualGuardImpl gpu(device_->type());
  c10::Event ready(device_->type());
  ready.record(gpu.getStream(*device_));
  ready.block(*stream_);
  const c10::StreamGuard guard(*stream_);
  for (size_t i = 0; i < sources_.size(); ++i) {
    if (sources_[i].values.is_cuda())
      copies_[i].values.copy_(sources_[i].values, /*non_blocking=*/true);
  }
  copied_->record(*stream_);
}

void StateCopy::copy_host_tensors() {
  for (size_t i = 0; i < sources_.size(); ++i) {
    const at::Tensor& from = sources_[i].values;
    if (from.is_cuda()) continue;
    const char* source = static_cast<const char*>(from.const_data_ptr());
    char* target = static_cast<char*>(copies_[i].values.data_ptr());
    for (uint64_t at = 0; at < from.nbytes(); at += kPiece)
      std::memcpy(target + at, source + at, std::min<uint64_t>(kPiece, from.nbytes() - at));
  }
}

void StateCopy::complete() {
  std::exception_ptr failure;
  try {
    copy_host_tensors();
    if (copied_) copied_->synchronize();
  } catch (...) {
    failure = std::current_exception();
  }
  const std::lock_guard lock(mutex_);
  failure_ = failure;
  whole_ = true;
  changed_.notify_all();
}

void StateCopy::hold() {
  const bool host_tensors = std::any_of(sources_.begin(), sources_.end(), [](const auto& source) {
    return !source.values.is_cuda();
  });
  if (host_tensors) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return whole_; });
  }
  if (!device_) return;
  const c10::impl::VirtualGuardImpl gpu(device_->type());
  const c10::Stream current = gpu.getStream(*device_);
  reached_->record(current);
  copied_->block(current);
  held_ = true;
}

const std::vector<ShardTensor>& StateCopy::copies() const {
  if (failure_) std::rethrow_exception(failure_);
  return copies_;
}

double StateCopy::device_wait_s() const {
  // Not reached yet although the copy is whole: nothing had to wait.
  if (!held_ || !reached_->query()) return 0;
  return std::max(0.0, reached_->elapsedTime(*copied_) / 1000);
}

}  // namespace mgm
