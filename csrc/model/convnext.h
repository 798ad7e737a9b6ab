// The HR encoder: ConvNeXt as OpenCLIP's trunk (timm convnext), any depths and widths. All four
// stage maps are features. Activations are NHWC throughout.
#pragma once

#include "config/run_config.h"
#include "nn/block_runner.h"
#include "nn/layers.h"

namespace mgm {

class ConvnextStage;

class Convnext : public Module {
 public:
  Convnext(const std::string& prefix, const ConvnextConfig& config);

  // pixels NHWC [N, S, S, 3], normalised -> four maps NHWC with strides 4, 8, 16, 32 (floored, as
  // timm). `image_keys` [N] identify the pictures for drop path, which is active in training even
  // when the tower is frozen, as in the published runs (drop_path 0 switches it off).
  std::vector<at::Tensor> operator()(const at::Tensor& pixels_NHWC,
                                     const std::vector<uint64_t>& image_keys,
                                     const ForwardContext& ctx) const;
  void list_uses(std::vector<GroupUse>& out) const;

 private:
  // [blocks, N] residual factors: 0 for a dropped branch, 1 / keep probability for a kept one.
  at::Tensor drop_path_scales(const std::vector<uint64_t>& image_keys, const ForwardContext& ctx,
                              at::TensorOptions options) const;

  ConvnextConfig config_;
  int64_t num_blocks_ = 0;
  Conv2d* stem_conv_;
  LayerNorm* stem_norm_;
  std::vector<ConvnextStage*> stages_;
};

}  // namespace mgm
