// Values that the host made, on their way to the device that computes with them.
#pragma once

#include <ATen/core/Tensor.h>

namespace mgm {

// `host` on `device`; as it is where it lies there already. Towards a GPU through page-locked
// memory, which the caching host allocator keeps until the copy is done: the host does not wait,
// while a copy from pageable memory would wait for all that the stream has before it.
at::Tensor upload(const at::Tensor& host, at::Device device);

}  // namespace mgm
