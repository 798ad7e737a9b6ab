// Fills parameters that are held packed (ParamSpec::format) from the pieces that loaders hand out,
// one parameter at a time: of dense weights it holds at most one, and only one that comes in
// several pieces.
#pragma once

#include "types/param.h"

namespace mgm {

class WeightPacker {
 public:
  // The weights are rounded to `dtype` first, as if they were used dense.
  WeightPacker(at::Device device, at::ScalarType dtype) : device_(device), dtype_(dtype) {}

  // Where parameters go from the next one on.
  void move_to(at::Device device) { device_ = device; }

  // Elements [first, first + values.numel()) of a parameter, of any float dtype, in order. Sets
  // Param::packed with the last of them. Returns them rounded.
  at::Tensor add(Param& param, int64_t first, const at::Tensor& values);

 private:
  at::Device device_;
  at::ScalarType dtype_;
  at::Tensor whole_;  // of the parameter that is under way
};

}  // namespace mgm
