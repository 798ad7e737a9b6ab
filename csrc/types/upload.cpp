#include "types/upload.h"

#include <ATen/ATen.h>

namespace mgm {

at::Tensor upload(const at::Tensor& host, at::Device device) {
  const bool crosses = device.is_cuda() && host.device().is_cpu();
  return (crosses ? host.pin_memory() : host).to(device, /*non_blocking=*/true);
}

}  // namespace mgm
