// Shape suffixes: N images, V views of all images, T rows of the token stream, H LLM width, C LR
// width.
#include "model/mini_gemini.h"

#include <ATen/ATen.h>

#include <numeric>

#include "base/error.h"
#include "model/image_views.h"

namespace mgm {
namespace {

ImageGeometry require_geometry(const ModelConfig& model, const ImageConfig& image) {
  const auto made = make_geometry(image, model.vision_tower, model.hr_encoder);
  if (const auto* problem = std::get_if<ConfigProblem>(&made)) {
    throw ConfigError(problem->key, ": ", problem->message);
  }
  return std::get<ImageGeometry>(made);
}

// [N, views, 3, s, s] -> [V, 3, s, s] in the encoder's order: the tiles of all images, then the
// global views (MGM mgm_arch.py encode_images).
at::Tensor encoder_order(const at::Tensor& views, const ImageGeometry& geometry) {
  const int64_t tiles = geometry.grid * geometry.grid;
  const at::Tensor local = views.narrow(1, 0, tiles).flatten(0, 1);
  return geometry.global ? at::cat({local, views.select(1, tiles)}, 0) : local;
}

}  // namespace

MiniGemini::MiniGemini(const ModelConfig& model, const ImageConfig& image, bool experts_apart)
    : model_(model), image_(image), geometry_(require_geometry(model, image)) {
  decoder_ = std::make_unique<Decoder>(model.llm, model.adapter, experts_apart);
  clip_ =
      std::make_unique<ClipVit>("model.vision_tower.vision_tower.vision_model", model.vision_tower);
  const int64_t lr_width = model.vision_tower.hidden_size;
  if (model.hr_encoder != HrEncoder::kNone) {
    const std::vector<int64_t>& dims = model.convnext.dims;
    convnext_ = std::make_unique<Convnext>("model.vision_tower_aux", model.convnext);
    mining_ = std::make_unique<PatchMining>(lr_width,
                                            std::accumulate(dims.begin(), dims.end(), int64_t{0}),
                                            geometry_, model.mining.kernel);
  }
  projector_ = std::make_unique<Projector>(model.projector.type, lr_width, model.llm.hidden_size);
}

std::vector<Param*> MiniGemini::params() const {
  std::vector<Param*> out;
  for (const Module* part : std::initializer_list<const Module*>{
           decoder_.get(), clip_.get(), convnext_.get(), mining_.get(), projector_.get()}) {
    if (!part) continue;
    const std::vector<Param*> params = part->params();
    out.insert(out.end(), params.begin(), params.end());
  }
  return out;
}

std::vector<GroupUse> MiniGemini::group_uses() const {
  std::vector<GroupUse> out;
  clip_->list_uses(out);
  if (mining_) {
    convnext_->list_uses(out);
    out.push_back({mining_->group(), /*vision=*/true});
  }
  out.push_back({projector_->group(), /*vision=*/true});
  decoder_->list_uses(out);
  return out;
}

at::ScalarType MiniGemini::dtype() const { return decoder_->params().front()->value.scalar_type(); }
at::Device MiniGemini::device() const { return decoder_->params().front()->value.device(); }

at::Tensor MiniGemini::encode_images(const at::Tensor& canvases, const std::vector<uint64_t>& keys,
                                     const ForwardContext& ctx) const {
  const at::ScalarType dtype = this->dtype();
  const auto nhwc = [dtype](const at::Tensor& x) {
    return x.permute({0, 2, 3, 1}).contiguous().to(dtype);
  };
  at::Tensor hr = normalise(canvases, image_);
  const at::Tensor lr = lr_views(hr, geometry_);
  if (image_.hr_source == HrSource::kUpsampledLr) hr = upsampled_lr(hr, geometry_);
  ctx.record("hr", hr);
  ctx.record("lr", lr);

  const at::Tensor lr_VNC = (*clip_)(nhwc(encoder_order(lr, geometry_)), ctx);
  const ops::MiningGeometry order = mining_geometry(geometry_);
  at::Tensor tokens_NNC = ops::arrange_tokens(lr_VNC, order);
  ctx.record("lr_features", tokens_NNC);
  if (mining_) {
    std::vector<at::Tensor> maps = (*convnext_)(nhwc(hr), keys, ctx);
    if (ctx.zero_hr) {
      for (at::Tensor& map : maps) map = at::zeros_like(map);
    }
    for (size_t s = 0; s < maps.size() && ctx.trace; ++s) {
      ctx.record(cat("hr_stage", s).c_str(), maps[s].permute({0, 3, 1, 2}));
    }
    const Tensors mined = (*mining_)(lr_VNC, maps, ctx);
    ctx.record("mined", mined[0]);
    ctx.record("attention", mined[1]);
    tokens_NNC = tokens_NNC + mined[0];
  }
  const at::Tensor visual = (*projector_)(tokens_NNC, ctx);
  ctx.record("visual_tokens", visual);
  return visual;
}

at::Tensor MiniGemini::embed(const Batch& batch, const ForwardContext& ctx) const {
  at::Tensor visual;
  if (batch.num_images() > 0) visual = encode_images(batch.images, batch.image_keys, ctx);
  return splice(batch, visual, ctx);
}

at::Tensor MiniGemini::splice(const Batch& batch, const at::Tensor& visual_NTH,
                              const ForwardContext& ctx) const {
  at::Tensor x_TH = decoder_->embed(batch.input_ids, ctx);
  const int64_t rows = visual_NTH.defined() ? visual_NTH.size(0) * visual_NTH.size(1) : 0;
  MGM_CHECK(rows == batch.image_rows.size(0), rows, " visual tokens for ", batch.image_rows.size(0),
            " rows");
  if (rows > 0) x_TH = x_TH.index_copy(0, batch.image_rows, visual_NTH.flatten(0, 1));
  ctx.record("inputs_embeds", x_TH);
  return x_TH;
}

at::Tensor MiniGemini::hidden(const Batch& batch, const ForwardContext& ctx,
                              RouterLoad* load) const {
  const at::Tensor hidden =
      decoder_->blocks(embed(batch, ctx), batch.positions, batch.seq, ctx, {}, load);
  ctx.record("hidden", hidden);
  return hidden;
}

at::Tensor MiniGemini::loss_sum(const Batch& batch, const ForwardContext& ctx) const {
  if (batch.num_targets() == 0) return {};
  RouterLoad load;
  const at::Tensor rows = hidden(batch, ctx, &load).index_select(0, batch.target_rows);
  const at::Tensor sum = decoder_->loss_sum(rows, batch.targets, ctx);
  if (!load.sums_2E.defined()) return sum;
  return sum + decoder_->balance_loss(load) * double(batch.num_targets());
}

}  // namespace mgm
