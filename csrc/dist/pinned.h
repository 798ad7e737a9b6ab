// Page-locked host memory for transfers that run beside computation. Registered as it is: the
// caching host allocator would round sizes up to powers of two.
#pragma once

#include <ATen/core/Tensor.h>

namespace mgm {

// A CPU tensor of exactly this size; page-locked in builds with CUDA. Contents are undefined.
// Throws Error(kInternal) with the size when the host has no room or refuses to lock it.
at::Tensor pinned_tensor(int64_t numel, at::ScalarType dtype);

}  // namespace mgm
