// The whole model: CLIP ViT (LR) and ConvNeXt (HR), patch info mining, projector, language model.
// One forward serves training, `mgm forward` and generation. Nothing is allocated by construction.
//
// Names recorded in ForwardContext::trace: hr, lr, hr_stage0..3 (NCHW), lr_features, mined,
// attention, visual_tokens, inputs_embeds, hidden.
#pragma once

#include <memory>
#include <utility>

#include "config/image_geometry.h"
#include "model/clip_vit.h"
#include "model/convnext.h"
#include "model/decoder.h"
#include "model/patch_mining.h"
#include "model/projector.h"
#include "types/batch.h"

namespace mgm {

class MiniGemini {
 public:
  // Throws ConfigError if the geometry is illegal. `experts_apart`: the language model's experts do
  // not all lie here (model/decoder_block.h).
  MiniGemini(const ModelConfig& model, const ImageConfig& image, bool experts_apart = false);

  std::vector<Param*> params() const;  // in published order; storage is bound by the caller
  // Every group that a training forward with images uses, in the order it does.
  std::vector<GroupUse> group_uses() const;
  const ModelConfig& config() const { return model_; }
  const ImageConfig& image_config() const { return image_; }
  const ImageGeometry& geometry() const { return geometry_; }
  const Decoder& decoder() const { return *decoder_; }
  // Decoder::split(). Everything that is not the decoder's lies on the device of its embeddings.
  void split_decoder(std::vector<DecoderStage> stages) { decoder_->split(std::move(stages)); }
  at::ScalarType dtype() const;  // of the bound weights
  at::Device device() const;     // where pictures and token ids go

  // Visual tokens [N, tokens, H] of uint8 canvases [N, S, S, 3]; keys [N] for drop path.
  at::Tensor encode_images(const at::Tensor& canvases, const std::vector<uint64_t>& keys,
                           const ForwardContext& ctx) const;

  // The token stream [T, H]: text embeddings with the visual tokens of batch.images at
  // batch.image_rows. A batch without images never touches the encoders.
  at::Tensor embed(const Batch& batch, const ForwardContext& ctx) const;

  // The same with visual tokens [N, tokens, H] that encode_images made; undefined without images.
  at::Tensor splice(const Batch& batch, const at::Tensor& visual_NTH,
                    const ForwardContext& ctx) const;

  // Hidden states [T, H] before the final norm.
  at::Tensor hidden(const Batch& batch, const ForwardContext& ctx,
                    RouterLoad* load = nullptr) const;

  // Sum of cross entropies over batch.targets, an fp32 scalar; undefined when the batch has none.
  // With llm.router_aux_loss the batch's load-balancing loss is added once per target, so that the
  // mean over targets holds it once.
  at::Tensor loss_sum(const Batch& batch, const ForwardContext& ctx) const;

 private:
  ModelConfig model_;
  ImageConfig image_;
  ImageGeometry geometry_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<ClipVit> clip_;
  std::unique_ptr<Convnext> convnext_;   // null with hr_encoder none
  std::unique_ptr<PatchMining> mining_;  // null with hr_encoder none
  std::unique_ptr<Projector> projector_;
};

}  // namespace mgm
