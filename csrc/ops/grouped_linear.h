// Linear layers of many experts over rows sorted by expert, as one product: on a GPU without the
// host knowing how many rows an expert has. Shape letters: R rows, E experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace mgm::ops {

// Weights [out, in] of one shape as a view [E, out, in] of the storage they share. Undefined where
// they are not contiguous in one storage at one distance from each other (the experts of a
// parameter group are, if all of them train or none).
at::Tensor stacked_view(const std::vector<at::Tensor>& weights);

// Whether the GPU's grouped product (at::_grouped_mm) takes rows and weights: bf16 on CUDA, widths
// of whole 16 bytes, and weights that stacked_view takes.
bool has_grouped_kernel(const at::Tensor& x, const std::vector<at::Tensor>& weights);

// y [R, out] = x [R, in] times its expert's transposed weight; expert e has the rows from ends[e -
// 1] to ends[e], ends int32 [E] on x's device, and the last end is R. The gradient of a weight goes
// to its own leaf; without rows it is zero. On the GPU has_grouped_kernel must hold; on the CPU its
// twin computes, in any float type.
at::Tensor grouped_linear(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                          const at::Tensor& ends);

}  // namespace mgm::ops
