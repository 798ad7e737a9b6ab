// C widths, T tokens.
#include "train/plan/flops.h"

#include <cmath>

namespace mgm {
namespace {

double clip_block(const VisionTowerConfig& v, double views) {
  const double side = double(v.image_size / v.patch_size);
  const double tokens = side * side + 1, width = double(v.hidden_size);
  return views * (2 * tokens * (4 * width * width + 2 * width * double(v.intermediate_size)) +
                  4 * tokens * tokens * width);
}

double clip_patches(const VisionTowerConfig& v, double views) {
  const double side = double(v.image_size / v.patch_size);
  return views * 2 * side * side * double(v.hidden_size) * 3 * double(v.patch_size * v.patch_size);
}

double convnext_area(int64_t hr_size, int stage, double images) {
  const double side = std::floor(double(hr_size / 4) / double(int64_t{1} << stage));
  return images * side * side;
}

double convnext_stem(const ConvnextConfig& c, int64_t hr_size, double images) {
  return 2 * convnext_area(hr_size, 0, images) * 48 * double(c.dims[0]);
}

double convnext_stage(const ConvnextConfig& c, int64_t hr_size, int stage, double images) {
  const auto s = static_cast<size_t>(stage);
  const double width = double(c.dims[s]), area = convnext_area(hr_size, stage, images);
  const double down = s == 0 ? 0 : 2 * area * 4 * double(c.dims[s - 1]) * width;
  return down + double(c.depths[s]) * area * (2 * 49 * width + 16 * width * width);
}

double mining(const ModelConfig& m, const ImageGeometry& g, double images) {
  double channels = 0;
  for (const int64_t dim : m.convnext.dims) channels += double(dim);
  const double queries = images * double(g.tokens()), width = double(m.vision_tower.hidden_size);
  const double window = double(g.window * g.window);
  const double query = 2 * queries * width * width;
  if (m.mining.kernel == MiningKernel::kAbsorbed) {
    return query + 4 * queries * channels * width + 4 * queries * window * channels;
  }
  return query + 4 * queries * window * channels * width + 4 * queries * window * width;
}

double projector(const ProjectorConfig& p, double tokens, double in, double out) {
  if (p.type == "identity") return 0;
  const int depth = p.type == "linear" ? 1 : std::stoi(p.type.substr(3));
  return 2 * tokens * (in * out + (depth - 1) * out * out);
}

double mlp_params(const LlmConfig& c) {
  return 3 * double(c.hidden_size) * double(c.intermediate_size);
}

// Matrix parameters a token passes in one decoder block; experts that are dealt do not count.
double block_matrix_params(const LlmConfig& c, bool dealt) {
  const double width = double(c.hidden_size), head = double(head_width(c));
  const double attention =
      2 * width * head * double(c.num_heads) + 2 * width * head * double(c.num_kv_heads);
  if (c.num_experts == 0) return attention + mlp_params(c);
  const double experts = dealt ? 0 : mlp_params(c) * double(c.experts_per_token);
  return attention + experts + width * double(c.num_experts);
}

// Causal attention touches half of the scores of a segment, twice (scores and values); with a
// window the band below the diagonal.
double block_attention(const LlmConfig& c, int layer, const BatchShape& shape) {
  if (shape.segments == 0) return 0;
  const double rows = double(shape.rows), length = rows / double(shape.segments);
  const double window = double(layer_window(c, layer));
  const double keys = window > 0 && window < length ? window - window * window / (2 * length)
                                                    : length / 2;  // of a row, on average
  return 4 * rows * keys * double(head_width(c) * c.num_heads);
}

double forward_flops(const PlannedModel& model, const PlannedUse& use, const BatchShape& shape) {
  const ModelConfig& m = model.config.model;
  const double images = double(shape.images);
  const double views = images * double(model.geometry.lr_views());
  const int64_t hr_size = model.config.image.hr_size;
  switch (use.kind) {
    case UseKind::kClipEmbedding:
      return clip_patches(m.vision_tower, views);
    case UseKind::kClipBlock:
      return clip_block(m.vision_tower, views);
    case UseKind::kConvnextStem:
      return convnext_stem(m.convnext, hr_size, images);
    case UseKind::kConvnextStage:
      return convnext_stage(m.convnext, hr_size, use.number, images);
    case UseKind::kMining:
      return mining(m, model.geometry, images);
    case UseKind::kProjector:
      return projector(m.projector, images * double(model.geometry.tokens()),
                       double(m.vision_tower.hidden_size), double(m.llm.hidden_size));
    case UseKind::kEmbedding:
      return 0;
    case UseKind::kDecoderBlock:
      return 2 * double(shape.rows) *
                 (block_matrix_params(m.llm, model.deals_experts()) + use.adapters.params) +
             block_attention(m.llm, use.number, shape);
    case UseKind::kExperts:  // as many rows come as are sent, if the router is even
      return 2 * double(shape.rows) *
             (mlp_params(m.llm) * double(m.llm.experts_per_token) + use.adapters.params);
    case UseKind::kHead:
      return 2 * double(shape.targets) * double(m.llm.hidden_size) * double(m.llm.vocab_size);
  }
  return 0;
}

// A second run ends with the last tensor that backward asks for (train/recompute.h): what the last
// matrix reads, where nothing behind it keeps what it gives.
double last_matrix(const PlannedModel& model, const PlannedUse& use, const BatchShape& shape) {
  const ModelConfig& m = model.config.model;
  if (use.kind == UseKind::kClipBlock) {
    const VisionTowerConfig& v = m.vision_tower;
    const double side = double(v.image_size / v.patch_size);
    const double views = double(shape.images) * double(model.geometry.lr_views());
    return 2 * views * (side * side + 1) * double(v.hidden_size) * double(v.intermediate_size);
  }
  if (use.kind == UseKind::kDecoderBlock && m.llm.num_experts == 0 && use.adapters.params == 0 &&
      !llm_traits(m.llm.arch).post_norms) {
    return 2 * double(shape.rows) * mlp_params(m.llm) / 3;
  }
  return 0;
}

}  // namespace

std::vector<UseFlops> use_flops(const PlannedModel& model, const BatchShape& shape) {
  std::vector<UseFlops> out;
  for (const PlannedUse& use : model.uses) {
    UseFlops flops;
    flops.forward = forward_flops(model, use, shape);
    const double trained_share = use.params > 0 ? double(use.trained) / double(use.params) : 0;
    flops.backward = flops.forward * ((use.upstream ? 1 : 0) + trained_share);
    if (use.backward() && use.recompute != RecomputePolicy::kNone) {
      flops.recompute = flops.forward - last_matrix(model, use, shape);
      if (use.recompute == RecomputePolicy::kSelective && use.kind == UseKind::kDecoderBlock) {
        flops.recompute -= block_attention(model.config.model.llm, use.number, shape);
      }
    }
    out.push_back(flops);
  }
  return out;
}

}  // namespace mgm
