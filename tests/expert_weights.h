// Matrices of experts as a parameter group holds them: leaves of one storage, aligned, at one
// distance, with something else before and between them.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

namespace mgm {

// `experts` matrices [out, in], N(0, 1 / in), rounded to the options' dtype.
inline std::vector<at::Tensor> expert_weights(int64_t experts, int64_t out, int64_t in,
                                              const at::TensorOptions& options, bool train = true) {
  constexpr int64_t kAlign = 256;  // elements, as in dist/topology.h
  const int64_t stride = (out * in + kAlign - 1) / kAlign * kAlign + kAlign;
  const at::Tensor flat =
      (at::randn({kAlign + experts * stride}, at::kDouble) / std::sqrt(double(in))).to(options);
  std::vector<at::Tensor> weights;
  for (int64_t e = 0; e < experts; ++e) {
    at::Tensor leaf = at::empty({0}, flat.options());
    leaf.set_(flat.storage(), kAlign + e * stride, {out, in});
    weights.push_back(leaf.requires_grad_(train));
  }
  return weights;
}

}  // namespace mgm
