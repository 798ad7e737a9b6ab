#include "types/batch.h"

#include <ATen/ATen.h>

namespace mgm {

Batch Batch::to(at::Device device) const {
  Batch out = *this;
  for (at::Tensor* t : {&out.input_ids, &out.positions, &out.seq.cu_seqlens, &out.images,
                        &out.image_rows, &out.target_rows, &out.targets}) {
    if (!t->defined()) continue;
    // Through pinned memory the copy does not hold the host; the caching host allocator keeps the
    // staging buffer until the copy is done.
    if (device.is_cuda() && t->device().is_cpu()) *t = t->pin_memory();
    *t = t->to(device, /*non_blocking=*/true);
  }
  return out;
}

}  // namespace mgm
