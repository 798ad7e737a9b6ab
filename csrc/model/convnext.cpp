// Shape suffixes: N images, H and W map sides, C channels of the stage.
#include "model/convnext.h"

#include <ATen/ATen.h>

#include <numeric>

#include "base/rng.h"
#include "types/upload.h"

namespace mgm {
namespace {

constexpr double kInitStd = 0.02;  // timm: truncated normal, std 0.02, zero biases

}  // namespace

class ConvnextBlock : public Module {
 public:
  ConvnextBlock(const std::string& prefix, const std::string& group_name, int64_t channels,
                const ConvnextConfig& c)
      : Module(prefix, group_name) {
    const Linear::Inits inits{normal_init(kInitStd), constant_init(0)};
    conv_ = &add<Conv2d>(child_name("conv_dw"), group(),
                         Conv2d::Shape{channels, channels, 7, 1, 3, channels, true},
                         normal_init(kInitStd));
    norm_ = &add<LayerNorm>(child_name("norm"), group(), channels, c.norm_eps);
    fc1_ = &add<Linear>(child_name("mlp.fc1"), group(), channels, 4 * channels, true, inits);
    fc2_ = &add<Linear>(child_name("mlp.fc2"), group(), 4 * channels, channels, true, inits);
    gamma_ = &declare("gamma", {channels}, constant_init(c.layer_scale), false);
  }

  // `scale` [N, 1, 1, 1] multiplies the residual branch, or is undefined.
  at::Tensor operator()(const at::Tensor& x_NHWC, const at::Tensor& scale) const {
    at::Tensor h = (*fc2_)(at::gelu((*fc1_)((*norm_)((*conv_)(x_NHWC))))) * gamma_->value;
    if (scale.defined()) h = h * scale;
    return h + x_NHWC;
  }

 private:
  Conv2d* conv_;
  LayerNorm* norm_;
  Linear *fc1_, *fc2_;
  Param* gamma_;
};

class ConvnextStage : public Module {
 public:
  ConvnextStage(const std::string& prefix, int64_t in, int64_t out, int64_t depth,
                const ConvnextConfig& c)
      : Module(prefix, prefix) {
    if (in > 0) {
      norm_ = &add<LayerNorm>(child_name("downsample.0"), group(), in, c.norm_eps);
      conv_ = &add<Conv2d>(child_name("downsample.1"), group(),
                           Conv2d::Shape{in, out, 2, 2, 0, 1, true}, normal_init(kInitStd));
    }
    for (int64_t i = 0; i < depth; ++i) {
      blocks_.push_back(
          &add<ConvnextBlock>(child_name("blocks." + std::to_string(i)), group(), out, c));
    }
  }

  // `scales` [depth, N, 1, 1, 1] of drop path, or undefined.
  at::Tensor operator()(at::Tensor x_NHWC, const at::Tensor& scales) const {
    if (conv_) x_NHWC = (*conv_)((*norm_)(x_NHWC));
    for (size_t i = 0; i < blocks_.size(); ++i) {
      x_NHWC =
          (*blocks_[i])(x_NHWC, scales.defined() ? scales[static_cast<int64_t>(i)] : at::Tensor());
    }
    return x_NHWC;
  }

 private:
  LayerNorm* norm_ = nullptr;
  Conv2d* conv_ = nullptr;
  std::vector<ConvnextBlock*> blocks_;
};

Convnext::Convnext(const std::string& prefix, const ConvnextConfig& config)
    : Module(prefix, prefix + ".vision_stem"), config_(config) {
  stem_conv_ =
      &add<Conv2d>(child_name("vision_stem.0"), group(),
                   Conv2d::Shape{3, config.dims[0], 4, 4, 0, 1, true}, normal_init(kInitStd));
  stem_norm_ =
      &add<LayerNorm>(child_name("vision_stem.1"), group(), config.dims[0], config.norm_eps);
  for (size_t s = 0; s < config.dims.size(); ++s) {
    stages_.push_back(&add<ConvnextStage>(child_name("vision_stages." + std::to_string(s)),
                                          s == 0 ? 0 : config.dims[s - 1], config.dims[s],
                                          config.depths[s], config));
    num_blocks_ += config.depths[s];
  }
}

void Convnext::list_uses(std::vector<GroupUse>& out) const {
  out.push_back({group(), /*vision=*/true, /*source=*/true});
  for (const ConvnextStage* stage : stages_) out.push_back({stage->group(), /*vision=*/true});
}

at::Tensor Convnext::drop_path_scales(const std::vector<uint64_t>& image_keys,
                                      const ForwardContext& ctx, at::TensorOptions options) const {
  if (!(ctx.training || ctx.drop_path) || config_.drop_path == 0) return {};
  const auto images = static_cast<int64_t>(image_keys.size());
  at::Tensor scales = at::empty({num_blocks_, images, 1, 1, 1}, at::kFloat);
  float* out = scales.data_ptr<float>();
  const uint64_t key = rng_key(ctx.seed, "drop_path");
  for (int64_t block = 0; block < num_blocks_; ++block) {
    // linspace(0, rate, blocks): the first block never drops.
    const double rate =
        num_blocks_ == 1 ? 0 : config_.drop_path * double(block) / double(num_blocks_ - 1);
    for (int64_t i = 0; i < images; ++i) {
      const uint64_t high = static_cast<uint64_t>(ctx.step) * 65536 + static_cast<uint64_t>(block);
      const bool keep = uniform01(key, high, image_keys[static_cast<size_t>(i)]) >= rate;
      *out++ = keep ? static_cast<float>(1.0 / (1.0 - rate)) : 0.0f;
    }
  }
  return upload(scales.to(options.dtype()), options.device());
}

std::vector<at::Tensor> Convnext::operator()(const at::Tensor& pixels_NHWC,
                                             const std::vector<uint64_t>& image_keys,
                                             const ForwardContext& ctx) const {
  at::Tensor x_NHWC = ctx.runner.run(group(), {pixels_NHWC}, [this](const Tensors& in) -> Tensors {
    return {(*stem_norm_)((*stem_conv_)(in[0]))};
  })[0];
  const at::Tensor scales = drop_path_scales(image_keys, ctx, pixels_NHWC.options());
  std::vector<at::Tensor> maps;
  int64_t first_block = 0;
  for (size_t s = 0; s < stages_.size(); ++s) {
    const ConvnextStage* stage = stages_[s];
    const at::Tensor stage_scales =
        scales.defined() ? scales.narrow(0, first_block, config_.depths[s]) : scales;
    first_block += config_.depths[s];
    x_NHWC = ctx.runner.run(stage->group(), {x_NHWC},
                            [stage, stage_scales](const Tensors& in) -> Tensors {
                              return {(*stage)(in[0], stage_scales)};
                            })[0];
    maps.push_back(x_NHWC);
  }
  return maps;
}

}  // namespace mgm
