#include "nn/weight_packer.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "ops/packed_weight.h"

namespace mgm {

at::Tensor WeightPacker::add(Param& param, int64_t first, const at::Tensor& values) {
  const int64_t numel = param.spec.numel(), end = first + values.numel();
  MGM_CHECK(param.spec.format != WeightFormat::kDense, param.spec.name, " is not held packed");
  const at::Tensor rounded = values.reshape(-1).to(dtype_);
  if (first == 0) whole_ = end == numel ? rounded : at::empty({numel}, dtype_);
  MGM_CHECK(whole_.defined() && whole_.numel() == numel && end <= numel, param.spec.name, ": ",
            values.numel(), " values at ", first, " of ", numel);
  if (values.numel() < numel) whole_.narrow(0, first, values.numel()).copy_(rounded);
  if (end < numel) return rounded;
  const at::Tensor weight = whole_.view(param.spec.shape).to(device_);
  param.packed = ops::pack_weight(weight, param.spec.format);
  whole_.reset();
  return rounded;
}

}  // namespace mgm
