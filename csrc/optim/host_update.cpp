#include "optim/host_update.h"

#ifdef MGM_WITH_CUDA

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "base/error.h"
#include "dist/pinned.h"

namespace mgm {
namespace {

void copy_async(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                const c10::cuda::CUDAStream& stream) {
  const cudaError_t code = cudaMemcpyAsync(to, from, bytes, kind, stream.stream());
  if (code != cudaSuccess) {
    throw InternalError("offload: a copy of ", bytes, " bytes failed: ", cudaGetErrorString(code));
  }
}

}  // namespace

HostUpdate::HostUpdate(const std::vector<ParamGroup*>& groups)
    : groups_(groups),
      down_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true)),
      up_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true)) {
  int64_t largest = 0;
  for (const ParamGroup* group : groups) largest = std::max(largest, group->trained.part);
  for (Slot& slot : slots_) {
    slot.grad = pinned_tensor(largest, at::kFloat);
    slot.copy = pinned_tensor(largest, at::kBFloat16);
  }
}

void HostUpdate::fetch(size_t g) {
  const at::Tensor& grad = groups_[g]->grad;
  copy_async(slots_[g % slots_.size()].grad.mutable_data_ptr(), grad.const_data_ptr(),
             grad.nbytes(), cudaMemcpyDeviceToHost, down_);
}

void HostUpdate::run(const Update& update) {
  at::cuda::CUDAEvent ready;  // gradients are summed and nobody reads the old weights any more
  ready.record(c10::cuda::getCurrentCUDAStream());
  ready.block(down_);
  ready.block(up_);
  std::vector<at::cuda::CUDAEvent> fetched(groups_.size()), sent(groups_.size());
  const auto fetch_next = [&](size_t g) {
    if (g >= groups_.size()) return;
    fetch(g);
    fetched[g].record(down_);
  };
  fetch_next(0);
  for (size_t g = 0; g < groups_.size(); ++g) {
    fetch_next(g + 1);
    Slot& slot = slots_[g % slots_.size()];
    if (g >= slots_.size()) sent[g - slots_.size()].synchronize();  // slot.copy has left
    fetched[g].synchronize();
    const Flat& flat = groups_[g]->trained;
    at::Tensor copy = slot.copy.narrow(0, 0, flat.part);
    update(g, slot.grad.const_data_ptr<float>(), copy);
    copy_async(flat.shard.mutable_data_ptr(), copy.const_data_ptr(), copy.nbytes(),
               cudaMemcpyHostToDevice, up_);
    sent[g].record(up_);
  }
  at::cuda::CUDAEvent done;
  done.record(up_);
  done.block(c10::cuda::getCurrentCUDAStream());
  if (!sent.empty()) sent.back().synchronize();  // the next step reuses the slots
}

}  // namespace mgm

#endif
