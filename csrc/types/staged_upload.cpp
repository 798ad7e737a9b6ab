#include "types/staged_upload.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "types/on_threads.h"

namespace mgm {
namespace {

void copy_on_threads(void* to, const void* from, int64_t bytes) {
  on_threads(bytes, /*grain=*/1 << 20, [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                static_cast<size_t>(end - begin));
  });
}

}  // namespace

at::Tensor StagedUpload::operator()(const at::Tensor& host, at::Device device) {
  if (!device.is_cuda() || !host.device().is_cpu()) return host.to(device);
  MGM_CHECK(host.is_contiguous(), "a strided tensor to upload");
  at::Tensor out = at::empty(host.sizes(), host.options().device(device));
  const at::Tensor bytes = out.view(-1).view(at::kByte);
  const auto* from = static_cast<const char*>(host.const_data_ptr());
  const auto size = static_cast<int64_t>(host.nbytes());
  const c10::impl::VirtualGuardImpl guard(device.type());
  for (int64_t begin = 0; begin < size; begin += kBytes) {
    Slot& slot = slots_[next_++ % slots_.size()];
    if (!slot.buffer.defined()) {
      slot.buffer = at::empty({kBytes}, at::TensorOptions(at::kByte).pinned_memory(true));
    }
    if (slot.left) slot.left->synchronize();
    const int64_t count = std::min(kBytes, size - begin);
    copy_on_threads(slot.buffer.mutable_data_ptr(), from + begin, count);
    bytes.narrow(0, begin, count).copy_(slot.buffer.narrow(0, 0, count), /*non_blocking=*/true);
    slot.left.emplace(device.type());  // anew: an event belongs to one device
    slot.left->record(guard.getStream(device));
  }
  return out;
}

}  // namespace mgm
