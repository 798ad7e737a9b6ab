// Shape suffixes: N images, L tokens per view (class token first), C width, H heads, D head width.
#include "model/clip_vit.h"

#include <ATen/ATen.h>

#include <cmath>

#include "ops/attention.h"

namespace mgm {

class ClipBlock : public Module {
 public:
  // Initial standard deviations of HF CLIPPreTrainedModel._init_weights with factor 1.
  ClipBlock(const std::string& prefix, const VisionTowerConfig& c)
      : Module(prefix, prefix), heads_(c.num_heads) {
    const int64_t width = c.hidden_size;
    const double in_std =
        std::pow(double(width), -0.5) * std::pow(2.0 * double(c.num_layers), -0.5);
    const double out_std = std::pow(double(width), -0.5);
    const double fc_std = std::pow(2.0 * double(width), -0.5);
    const Init zero = constant_init(0);
    auto linear = [&](const char* name, int64_t in, int64_t out, double std) {
      return &add<Linear>(child_name(name), group(), in, out, true,
                          Linear::Inits{normal_init(std), zero});
    };
    norm1_ = &add<LayerNorm>(child_name("layer_norm1"), group(), width, c.norm_eps);
    q_ = linear("self_attn.q_proj", width, width, in_std);
    k_ = linear("self_attn.k_proj", width, width, in_std);
    v_ = linear("self_attn.v_proj", width, width, in_std);
    out_ = linear("self_attn.out_proj", width, width, out_std);
    norm2_ = &add<LayerNorm>(child_name("layer_norm2"), group(), width, c.norm_eps);
    fc1_ = linear("mlp.fc1", width, c.intermediate_size, fc_std);
    fc2_ = linear("mlp.fc2", c.intermediate_size, width, in_std);
  }

  at::Tensor operator()(const at::Tensor& x_NLC) const {
    const at::Tensor h = (*norm1_)(x_NLC);
    const at::Tensor a =
        ops::attention_dense(split_heads((*q_)(h)), split_heads((*k_)(h)), split_heads((*v_)(h)));
    const at::Tensor x = x_NLC + (*out_)(a.transpose(1, 2).flatten(2));
    const at::Tensor m = (*fc1_)((*norm2_)(x));
    return x + (*fc2_)(m * at::sigmoid(1.702 * m));  // quick GELU
  }

 private:
  at::Tensor split_heads(const at::Tensor& x_NLC) const {
    return x_NLC.unflatten(2, {heads_, -1}).transpose(1, 2);  // [N, H, L, D]
  }

  int64_t heads_;
  LayerNorm *norm1_, *norm2_;
  Linear *q_, *k_, *v_, *out_, *fc1_, *fc2_;
};

ClipVit::ClipVit(const std::string& prefix, const VisionTowerConfig& config)
    : Module(prefix, prefix + ".embeddings"), config_(config) {
  const int64_t width = config.hidden_size;
  const int64_t side = config.image_size / config.patch_size;
  embeddings_group_ = group();
  class_embedding_ = &declare("embeddings.class_embedding", {width},
                              normal_init(std::pow(double(width), -0.5)), false);
  patch_embedding_ =
      &add<Conv2d>(child_name("embeddings.patch_embedding"), group(),
                   Conv2d::Shape{3, width, config.patch_size, config.patch_size, 0, 1, false},
                   normal_init(0.02));
  position_embedding_ = &add<Embedding>(child_name("embeddings.position_embedding"), group(),
                                        side * side + 1, width, normal_init(0.02));
  pre_norm_ = &add<LayerNorm>(child_name("pre_layrnorm"), group(), width, config.norm_eps);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    blocks_.push_back(&add<ClipBlock>(child_name("encoder.layers." + std::to_string(i)), config));
  }
  add<LayerNorm>(child_name("post_layernorm"), group(), width, config.norm_eps);  // never run
  blocks_run_ =
      config.select_layer >= 0 ? config.select_layer : config.num_layers + 1 + config.select_layer;
}

void ClipVit::list_uses(std::vector<GroupUse>& out) const {
  out.push_back({embeddings_group_, /*vision=*/true, /*source=*/true});
  for (int64_t i = 0; i < blocks_run_; ++i) {
    out.push_back({blocks_[static_cast<size_t>(i)]->group(), /*vision=*/true});
  }
}

at::Tensor ClipVit::operator()(const at::Tensor& pixels_NHWC, const ForwardContext& ctx) const {
  const auto embed = [this](const Tensors& in) -> Tensors {
    const at::Tensor patches = (*patch_embedding_)(in[0]).flatten(1, 2);  // row-major patches
    const at::Tensor cls = class_embedding_->value.expand({patches.size(0), 1, -1});
    const at::Tensor x = at::cat({cls, patches}, 1) + position_embedding_->weight().value;
    return {(*pre_norm_)(x)};
  };
  at::Tensor x_NLC = ctx.runner.run(embeddings_group_, {pixels_NHWC}, embed)[0];
  for (int64_t i = 0; i < blocks_run_; ++i) {
    const ClipBlock* block = blocks_[static_cast<size_t>(i)];
    x_NLC = ctx.runner.run(block->group(), {x_NLC},
                           [block](const Tensors& in) -> Tensors { return {(*block)(in[0])}; })[0];
  }
  return config_.select_feature == SelectFeature::kPatch ? x_NLC.slice(1, 1) : x_NLC;
}

}  // namespace mgm
