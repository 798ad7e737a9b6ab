// The LR encoder: CLIP ViT (HF CLIPVisionModel), any size. Pre-norm transformer with a class token;
// the feature is one of the num_layers + 1 hidden states, blocks behind it are declared but never
// run.
#pragma once

#include "config/run_config.h"
#include "nn/block_runner.h"
#include "nn/layers.h"

namespace mgm {

class ClipBlock;

class ClipVit : public Module {
 public:
  ClipVit(const std::string& prefix, const VisionTowerConfig& config);

  // pixels NHWC [N, s, s, 3], normalised, in the weights' dtype -> features [N, tokens, width].
  at::Tensor operator()(const at::Tensor& pixels_NHWC, const ForwardContext& ctx) const;

  int64_t blocks_run() const { return blocks_run_; }
  // Appends the groups that a forward pass uses, in order. The other parts have the same.
  void list_uses(std::vector<GroupUse>& out) const;

 private:
  VisionTowerConfig config_;
  int64_t blocks_run_;
  Param* class_embedding_;
  Conv2d* patch_embedding_;
  Embedding* position_embedding_;
  LayerNorm* pre_norm_;
  std::vector<ClipBlock*> blocks_;
  std::string embeddings_group_;
};

}  // namespace mgm
