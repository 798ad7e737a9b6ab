// Linear layers of many experts over rows sorted by expert, as one product: on a GPU without the
// host knowing how many rows an expert has. Shape letters: R rows, E experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace mgm::ops {

// Weights [out, in] of one shape, and as a view [E, out, in] of the storage they share. The view is
// undefined where they are not contiguous in one storage at one distance from each other (the
// experts of a parameter group are, if all of them train or none).
struct StackedWeights {
  std::vector<at::Tensor> each;
  at::Tensor view;
};
StackedWeights stack_weights(std::vector<at::Tensor> weights);

// Whether the GPU's grouped product (at::_grouped_mm) takes rows and weights: bf16 on CUDA, widths
// of whole 16 bytes, and weights with a view.
bool has_grouped_kernel(const at::Tensor& x, const StackedWeights& weights);

// y [R, out] = x [R, in] times its expert's transposed weight; expert e has the rows from ends[e -
// 1] to ends[e], ends int32 [E] on x's device, and the last end is R. The weights have a view, and
// all of them train or none. The gradient of a weight goes to its own leaf; without rows it is
// zero. On the GPU has_grouped_kernel must hold; on the CPU its twin computes, in any float type.
at::Tensor grouped_linear(const at::Tensor& x, const StackedWeights& weights,
                          const at::Tensor& ends);

}  // namespace mgm::ops
