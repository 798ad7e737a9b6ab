#include "train/export_verify.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "base/error.h"
#include "checkpoint/mm_projector_file.h"
#include "checkpoint/weight_loader.h"
#include "data/pack.h"

namespace mgm {
namespace {

constexpr const char* kPrompt = "The red bus stands beside 17 apples.";

// Colours in which every pixel differs from its neighbours.
Picture test_picture(int64_t side) {
  Picture picture{"(test picture)", side, side, RgbImage(side, side)};
  for (size_t i = 0; i < picture.canvas.hwc.size(); ++i) {
    picture.canvas.hwc[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  }
  return picture;
}

Batch test_batch(const MiniGemini& model, const ModelDescription& description,
                 const Tokenizer& tokenizer, bool picture) {
  const std::string text = cat(picture ? cat(kImageMarker, "\n") : "", kPrompt);
  Sample sample = widen_markers(encode_with_images(tokenizer, text, {}), model.geometry().tokens());
  if (picture) sample.pictures.push_back(test_picture(description.image.hr_size));
  return pack({sample}, 0, 0);
}

at::Tensor logits_of(const MiniGemini& model, const Batch& batch) {
  DirectRunner runner;
  const ForwardContext ctx{runner};
  return model.decoder().logits(model.hidden(batch, ctx), ctx);
}

at::Tensor exported_logits(const fs::path& dir, const ModelDescription& description,
                           const Batch& batch, bool llm_only) {
  if (!llm_only) return logits_of(*load_model(dir, {}).model, batch);
  ModelConfig config = description.model;
  config.adapter = {};  // merged
  const fs::path file = dir / "config.json";
  read_llm_config(read_config_json(file), file.string(), config.llm);
  const MiniGemini model(config, description.image);
  std::vector<Param*> params;
  for (Param* param : model.params()) {
    if (!in_projector_file(param->spec.name)) params.push_back(param);
  }
  load_weights(params, *open_model_dir(dir));
  return logits_of(model, batch);
}

}  // namespace

ExportCheck verify_export(const fs::path& dir, const ModelDescription& description,
                          const Tokenizer& tokenizer,
                          const std::function<at::Tensor(Param&)>& value, bool llm_only,
                          double tolerance) {
  const at::NoGradGuard no_grad;
  Batch batch;
  at::Tensor expected;
  {
    const MiniGemini model(description.model, description.image);
    batch = test_batch(model, description, tokenizer, !llm_only);
    for (Param* param : model.params()) {
      if (llm_only && in_projector_file(param->spec.name)) continue;
      param->value = value(*param).to(at::kFloat);
    }
    expected = logits_of(model, batch);
  }
  const double norm = expected.to(at::kDouble).norm().item<double>();
  if (!(norm > 0 && std::isfinite(norm))) {  // which anything that is as broken would equal
    throw CheckpointError(dir.string(),
                          ": not compared, since the logits of the run's own weights ",
                          norm == 0 ? "are all zero" : "are not finite", "; it is not kept");
  }
  const at::Tensor actual = exported_logits(dir, description, batch, llm_only);
  if (actual.sizes() != expected.sizes()) {
    throw CheckpointError(dir.string(), ": its logits are ", actual.sizes(), ", those of the run ",
                          expected.sizes());
  }
  const at::Tensor difference = (actual - expected).to(at::kDouble);
  ExportCheck out;
  out.rows = expected.size(0);
  out.vocab = expected.size(1);
  out.max_abs = difference.abs().max().item<double>();
  out.relative_l2 = difference.norm().item<double>() / norm;
  if (!(out.relative_l2 <= tolerance)) {  // NaN too
    throw CheckpointError(dir.string(), ": its logits differ from those of the run's weights: ",
                          strf("max abs %.3g, relative L2 %.3g, allowed %.3g", out.max_abs,
                               out.relative_l2, tolerance),
                          "; it is not kept");
  }
  return out;
}

}  // namespace mgm
