// Patch info mining (Mini-Gemini, arXiv 2403.18814, section 3.2; MGM mgm_arch.py,
// unified_resampler): every LR token looks at its p x p window of the HR feature map and adds what
// it finds there. mine() is the front that model code calls; patch_mining() is the differentiable
// kernel below it.
//
// Shapes: B images, g grid, n LR patches per side of a view, p window side, h = g n p side of the
// stage-0 map, C_s channels of stage s and C their sum, d mining width, V = views of all images.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace mgm::ops {

struct MiningGeometry {
  int64_t grid = 1;     // g: tiles per side
  bool global = false;  // one more view of the whole picture per image
  int64_t patches = 0;  // n: LR patches per side of a view
  int64_t window = 0;   // p: side of a window, in positions of the map the view sees

  int64_t views() const { return grid * grid + (global ? 1 : 0); }
  int64_t tokens() const { return views() * patches * patches; }  // N of one image
  int64_t map_size() const { return grid * patches * window; }    // h
};

// The published names: query vlm_uni_query_projector, key vlm_uni_aux_projector, value
// vlm_uni_val_projector; `norm` is .0 (LayerNorm over the input, eps 1e-5), `linear` is .1.
struct MiningProjection {
  at::Tensor norm_weight, norm_bias;      // [in]
  at::Tensor linear_weight, linear_bias;  // [d, in], [d]; in = LR width for query, else C
};

struct MiningParams {
  MiningProjection query, key, value;
};

enum class MiningForm {
  kAbsorbed,   // K and V projections moved off the HR positions; the map is never made whole
  kReference,  // the literal composition; NaN stays NaN
  kReferenceNanToNum,  // the literal composition with the reference's nan_to_num of the logits
};

struct Mined {
  at::Tensor tokens;     // [B, N, d] in the LR features' dtype, without the residual
  at::Tensor attention;  // [B, N, p * p], detached, positions of a window row-major
};

// `lr_VNC` [V, n * n, LR width]: LR features, all tiles first (sample, tile row, tile column), then
// all global views (V = B * views()). `stages`: the four ConvNeXt maps, NHWC [B, h_s, h_s, C_s]
// with h_0 = map_size(). The result is in final token order: the global view, then the tiles
// row-major, patches of a view row-major (spec of order: arrange_tokens()). With kAbsorbed the
// gradients of key.norm_bias and key.linear_bias, mathematically zero, are left undefined. Throws
// InternalError on shapes that do not fit the geometry.
Mined mine(MiningForm form, const at::Tensor& lr_VNC, const std::vector<at::Tensor>& stages,
           const MiningParams& params, const MiningGeometry& geometry);

// [V, tokens, X] in the encoder's order (tiles of all samples, then global views) -> [B, N, X] in
// final order (global, then tiles). For the residual and for lr_features; any tokens per view.
at::Tensor arrange_tokens(const at::Tensor& views_VNX, const MiningGeometry& geometry);

// What patch_mining() sees: the map cut into tiles x tiles tiles of patches x patches windows. The
// tiles view is {grid, patches, window, 1}; the global view is {1, patches, window, grid}: the map
// is first resized by 1 / downscale (bilinear, align_corners False).
struct MiningView {
  int64_t tiles = 1;
  int64_t patches = 0;
  int64_t window = 0;
  int64_t downscale = 1;

  int64_t queries() const { return tiles * tiles * patches * patches; }  // Q
  int64_t side() const { return tiles * patches * window; }              // of the map it sees
};

struct MiningResult {
  at::Tensor pooled;     // [B, Q, C] fp32 (fp64)
  at::Tensor attention;  // [B, Q, p * p] fp32 (fp64), detached
};

// pooled_q = sum_j a_j xhat_j with a = softmax_j(xhat_j . u_q), j over the p * p window positions
// of query q and xhat_j = LayerNorm without affine (eps 1e-5) of the C channels at j. Queries:
// tiles row-major, inside a tile patches row-major. Stages 1..3 are resized to stage 0 (bilinear,
// align_corners False, in coordinates of the whole map) on the fly. Stages NHWC contiguous, all of
// one dtype: float32, bfloat16, on the CPU also float64. u [B, Q, C] float32 (float64 with float64
// maps), the dtype of all sums. Gradients: u and every stage; each sum runs in a fixed order, so
// they repeat bit for bit. A non-finite score makes its whole query NaN.
MiningResult patch_mining(const std::vector<at::Tensor>& stages, const at::Tensor& u_BQC,
                          const MiningView& view);

}  // namespace mgm::ops
