// The front of patch info mining: both forms, views and token order.
// Shape suffixes: V views, B images, Q queries of one kind of view in one image, P = p * p
// positions, d mining width, C channels of all stages, X any.
#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <cmath>

#include "base/error.h"
#include "ops/patch_mining.h"
#include "ops/resize.h"

namespace mgm::ops {
namespace {

constexpr double kNormEps = 1e-5;

at::Tensor project(const at::Tensor& x, const MiningProjection& p) {
  const at::Tensor normed = at::layer_norm(x, {x.size(-1)}, p.norm_weight, p.norm_bias, kNormEps);
  return at::linear(normed, p.linear_weight, p.linear_bias);
}

int64_t images_of(const at::Tensor& views_VNX, const MiningGeometry& g) {
  MGM_CHECK(views_VNX.dim() == 3 && views_VNX.size(0) % g.views() == 0, "LR features are ",
            views_VNX.sizes(), "; expected [B * ", g.views(), " views, tokens, channels]");
  return views_VNX.size(0) / g.views();
}

// The rows of one kind of view as [B, Q, X]: global views come after all tiles.
at::Tensor tile_rows(const at::Tensor& views_VNX, const MiningGeometry& g, int64_t images) {
  const int64_t tiles = images * g.grid * g.grid;
  return views_VNX.narrow(0, 0, tiles)
      .reshape({images, g.grid * g.grid * views_VNX.size(1), views_VNX.size(2)});
}
at::Tensor global_rows(const at::Tensor& views_VNX, const MiningGeometry& g, int64_t images) {
  return views_VNX.narrow(0, images * g.grid * g.grid, images);
}

struct ViewResult {
  at::Tensor tokens_BQd, attention_BQP;
};

// ---- absorbed -----------------------------------------------------------------------------------

// score_j = q . (Wk (gk xhat_j + bk) + ck) / sqrt(d): what does not depend on j cancels in the
// softmax, so the query moves to the other side, u = gk * (Wk^T q) / sqrt(d). The weights sum to 1,
// so out = Wv (gv * pooled + bv) + cv. u and pooled stay in fp32 (fp64); the products run in model
// dtype.
ViewResult mine_absorbed(const at::Tensor& q_BQd, const std::vector<at::Tensor>& stages,
                         const MiningParams& params, const MiningView& view) {
  const at::ScalarType model = q_BQd.scalar_type(), real = at::toOpMathType(model);
  const double scale = 1 / std::sqrt(static_cast<double>(q_BQd.size(-1)));
  const at::Tensor u_BQC = at::matmul(q_BQd, params.key.linear_weight).to(real) *
                           (params.key.norm_weight.to(real) * scale);
  const MiningResult mined = patch_mining(stages, u_BQC, view);
  const at::Tensor value_BQC =
      mined.pooled * params.value.norm_weight.to(real) + params.value.norm_bias.to(real);
  return {at::linear(value_BQC.to(model), params.value.linear_weight, params.value.linear_bias),
          mined.attention};
}

// ---- literal ------------------------------------------------------------------------------------

// All stages at stage-0 size, NCHW: resized in fp32 (fp64) and cast back.
at::Tensor whole_map(const std::vector<at::Tensor>& stages) {
  std::vector<at::Tensor> maps;
  const int64_t side = stages[0].size(1);
  for (const at::Tensor& stage : stages) {
    const at::Tensor nchw = stage.permute({0, 3, 1, 2});
    const at::ScalarType dtype = stage.scalar_type();
    maps.push_back(maps.empty()
                       ? nchw
                       : resize_bilinear(nchw.to(at::toOpMathType(dtype)), side, side).to(dtype));
  }
  return at::cat(maps, 1);
}

ViewResult mine_literal(const at::Tensor& q_BQd, const at::Tensor& map_BCHW,
                        const MiningParams& params, const MiningView& view, bool nan_to_num) {
  const int64_t B = map_BCHW.size(0), C = map_BCHW.size(1), t = view.tiles, n = view.patches,
                p = view.window;
  at::Tensor map = map_BCHW;
  if (view.downscale > 1) {
    const at::ScalarType dtype = map.scalar_type();
    map = resize_bilinear(map.to(at::toOpMathType(dtype)), view.side(), view.side()).to(dtype);
  }
  const at::Tensor windows_BQPC = map.reshape({B, C, t, n, p, t, n, p})
                                      .permute({0, 2, 5, 3, 6, 4, 7, 1})
                                      .reshape({B, view.queries(), p * p, C});
  const at::Tensor key = project(windows_BQPC, params.key);
  const at::Tensor value = project(windows_BQPC, params.value);
  const at::Tensor scaled = key / std::sqrt(static_cast<double>(q_BQd.size(-1)));
  at::Tensor logits = at::matmul(q_BQd.unsqueeze(2), scaled.transpose(2, 3));
  if (nan_to_num) logits = at::nan_to_num(logits);
  const at::Tensor attention = at::softmax(logits, -1);
  return {at::matmul(attention, value).squeeze(2), attention.squeeze(2).detach()};
}

}  // namespace

at::Tensor arrange_tokens(const at::Tensor& views_VNX, const MiningGeometry& g) {
  const int64_t images = images_of(views_VNX, g);
  const at::Tensor tiles = tile_rows(views_VNX, g, images);
  return g.global ? at::cat({global_rows(views_VNX, g, images), tiles}, 1) : tiles;
}

Mined mine(MiningForm form, const at::Tensor& lr_VNC, const std::vector<at::Tensor>& stages,
           const MiningParams& params, const MiningGeometry& g) {
  const int64_t images = images_of(lr_VNC, g);
  MGM_CHECK(lr_VNC.size(1) == g.patches * g.patches, "LR features are ", lr_VNC.sizes(),
            "; mining needs ", g.patches, "^2 tokens of a view");
  MGM_CHECK(stages.size() == 4, "expected four stage maps, got ", stages.size());
  MGM_CHECK(stages[0].dim() == 4 && stages[0].size(0) == images &&
                stages[0].size(1) == g.map_size() && stages[0].size(2) == g.map_size(),
            "the first stage map is ", stages[0].sizes(), "; expected [", images, " images, ",
            g.map_size(), ", ", g.map_size(), ", channels]");
  MGM_CHECK(!g.global || g.grid > 1, "a global view needs a grid of 2 or more");
  const at::Tensor q_VNd = project(lr_VNC, params.query);
  const at::Tensor map = form == MiningForm::kAbsorbed ? at::Tensor() : whole_map(stages);

  const auto mine_view = [&](const at::Tensor& q_BQd, const MiningView& view) {
    if (form == MiningForm::kAbsorbed) return mine_absorbed(q_BQd, stages, params, view);
    return mine_literal(q_BQd, map, params, view, form == MiningForm::kReferenceNanToNum);
  };
  const ViewResult tiles =
      mine_view(tile_rows(q_VNd, g, images), MiningView{g.grid, g.patches, g.window, 1});
  if (!g.global) return {tiles.tokens_BQd, tiles.attention_BQP};
  const ViewResult whole =
      mine_view(global_rows(q_VNd, g, images), MiningView{1, g.patches, g.window, g.grid});
  return {at::cat({whole.tokens_BQd, tiles.tokens_BQd}, 1),
          at::cat({whole.attention_BQP, tiles.attention_BQP}, 1)};
}

}  // namespace mgm::ops
