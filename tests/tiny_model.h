// A whole Mini-Gemini small enough for unit tests, with every parameter redrawn (norm weights and
// gamma U(0.5, 1.5), biases N(0, 0.3)): with default initialisation a test passes with whole blocks
// missing.
#pragma once

#include <ATen/ATen.h>

#include <memory>

#include "base/error.h"
#include "base/rng.h"
#include "data/pack.h"
#include "dist/param_store.h"
#include "dist/ranks.h"
#include "model/mini_gemini.h"
#include "nn/weight_packer.h"
#include "optim/param_rules.h"
#include "train/train_module.h"

namespace mgm {

// LR 24 px in 8 px patches (3 x 3 tokens), HR 96 px, windows of 8 x 8; widths that are no powers of
// two.
inline RunConfig tiny_config() {
  RunConfig c;
  c.model.init = ModelInit::kRandom;
  LlmConfig& llm = c.model.llm;
  llm.vocab_size = 67;
  llm.hidden_size = 24;
  llm.intermediate_size = 40;
  llm.num_layers = 2;
  llm.num_heads = 4;
  llm.num_kv_heads = 2;
  llm.head_dim = 6;
  VisionTowerConfig& clip = c.model.vision_tower;
  clip.image_size = 24;
  clip.patch_size = 8;
  clip.hidden_size = 20;
  clip.intermediate_size = 28;
  clip.num_layers = 3;
  clip.num_heads = 2;
  c.model.hr_encoder = HrEncoder::kConvnext;
  c.model.convnext.depths = {1, 1, 2, 1};
  c.model.convnext.dims = {6, 10, 12, 14};
  c.model.convnext.drop_path = 0.3;
  c.image.hr_size = 96;
  c.train.global_batch = 4;
  c.train.micro_batch = 4;
  c.train.seed = 7;
  TrainRule all;
  all.match = "*";
  c.train.rules = {all};
  return c;
}

inline at::Tensor redrawn(const ParamSpec& spec, uint64_t seed) {
  const at::Tensor out = at::empty(spec.shape, at::kDouble);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const bool bias = spec.name.size() > 4 && spec.name.substr(spec.name.size() - 4) == "bias";
  const bool scale = spec.shape.size() == 1 && !bias;
  if (scale) {
    out.uniform_(0.5, 1.5, generator);
  } else if (bias) {
    out.normal_(0, 0.3, generator);
  } else {
    out.normal_(0, 1 / std::sqrt(double(spec.numel()) / double(spec.shape[0])), generator);
  }
  return out;
}

struct TinyModel {
  explicit TinyModel(RunConfig run_config, at::ScalarType dtype = at::kFloat,
                     at::Device device = at::kCPU, const Topology& topology = {})
      : config(std::move(run_config)),
        model(config.model, config.image, config.dist.expert_parallel > 1) {
    params = model.params();
    const RuleOutcome rules = resolve_rules(params, config);
    StoreSettings settings;
    settings.device = device;
    settings.dtype = dtype;
    settings.gradients = true;
    settings.topology = topology;
    settings.bucket_dtype =
        config.dist.reduce_dtype == DtypeKind::kBfloat16 ? at::kBFloat16 : at::kFloat;
    settings.strict = config.dist.reduction == Reduction::kStrict;
    settings.offload = config.dist.offload == Offload::kOptimizer && device.is_cuda();
    store = std::make_unique<ParamStore>(params, rules.policies, settings);
    WeightPacker packer(device, dtype);
    for (size_t i = 0; i < params.size(); ++i) {
      const at::Tensor value = redrawn(params[i]->spec, i + 1);
      if (params[i]->spec.format == WeightFormat::kDense) {
        if (!store->contains(params[i]->spec.name)) continue;  // an expert of another rank
        store->assign(params[i]->spec.name, value);
      } else {
        packer.add(*params[i], 0, value);
      }
    }
  }

  // The gradient of a trained parameter that lies on one rank, a view.
  at::Tensor grad(const std::string& name) const { return store->owned_grad(name); }

  RunConfig config;
  MiniGemini model;
  std::vector<Param*> params;
  std::unique_ptr<ParamStore> store;
};

// A sample with `pictures` pictures (noise) and text around them; the last five ids are supervised.
inline Sample tiny_sample(const MiniGemini& model, int64_t index, int64_t pictures,
                          int64_t text_tokens) {
  const int64_t vocab = model.config().llm.vocab_size;
  Sample sample;
  sample.index = index;
  sample.id = cat("sample-", index);
  const uint64_t key = rng_key(static_cast<uint64_t>(index), "tiny_sample");
  sample.ids.push_back(1);
  for (int64_t p = 0; p < pictures; ++p) {
    sample.ids.insert(sample.ids.end(), static_cast<size_t>(model.geometry().tokens()),
                      kImageTokenIndex);
    const int64_t side = model.image_config().hr_size;
    Picture picture;
    picture.canvas = RgbImage(side, side);
    std::vector<float> noise(picture.canvas.hwc.size());
    fill_uniform(noise.data(), noise.size(), key, uint64_t(p + 1) << 32, 0, 256);
    std::copy(noise.begin(), noise.end(), picture.canvas.hwc.begin());
    sample.pictures.push_back(std::move(picture));
  }
  for (int64_t t = 0; t < text_tokens; ++t) {
    sample.ids.push_back(static_cast<int64_t>(uniform01(key, 0, uint64_t(t)) * double(vocab)));
  }
  sample.labels.assign(sample.ids.size(), kIgnoreIndex);
  for (size_t i = sample.ids.size() - 5; i < sample.ids.size(); ++i) {
    sample.labels[i] = sample.ids[i];
    ++sample.targets;
  }
  return sample;
}

}  // namespace mgm
