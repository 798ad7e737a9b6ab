// A model directory in the published layout (config.json, safetensors shards, tokenizer files),
// read into a model that can run and written from one.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "assemble/hf_config.h"
#include "base/fs.h"
#include "checkpoint/hf_directory.h"
#include "model/mini_gemini.h"
#include "text/tokenizer.h"

namespace mgm {

struct LoadedModel;

struct ModelLoadOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  std::string template_name;            // empty: the one config.json names
  std::optional<MiningKernel> mining;   // default: absorbed
  fs::path adapter;                     // a directory with a LoRA adapter on top; empty: none
  Quantize quantize = Quantize::kNone;  // how the linears of the decoder's blocks are held
  std::optional<uint64_t> drop_path_seed;
  // Called when everything but the weights is there. May spread the decoder over devices
  // (MiniGemini::split_decoder); returns the first one. Empty: all goes to `device`.
  std::function<at::Device(LoadedModel&)> place;
};

struct LoadedModel {
  ModelDescription description;
  std::unique_ptr<MiniGemini> model;  // every parameter bound (READ ONLY: perhaps mapped) or packed
  std::unique_ptr<Tokenizer> tokenizer;
  // Tokens that end an answer: eos_token_id, one or a list, of generation_config.json, of
  // config.json where there is no such file (as transformers reads them).
  std::vector<int32_t> stop_ids;
  // Pictures are encoded under drop path drawn from this seed, as by the reference, whose ConvNeXt
  // stays in training mode; none: without, as it should be.
  std::optional<uint64_t> drop_path_seed;

  // The settings of a forward pass of this model.
  ForwardContext context(BlockRunner& runner) const;
};

// `dir` may also be a directory with an adapter and a config.json, as write_adapter leaves it: the
// base it names is loaded under it (assemble/adapter_dir.h). Vision towers that the shards lack
// come from the directories config.json names (relative to the current folder, else to `dir`).
// Throws CheckpointError with the whole list of what is missing, of another shape, or not finite.
LoadedModel load_model(const fs::path& dir, const ModelLoadOptions& options);

struct ModelContent {
  const ModelDescription& description;
  const std::vector<Param*>& params;
  // Any float dtype and device; asked for once per parameter, shard by shard.
  std::function<at::Tensor(Param&)> value;
  const Tokenizer& tokenizer;
  fs::path backbone;  // where the language model came from; empty: from nowhere
  // The reference takes a tower from the shards only where config.json says that it was trained.
  bool vision_tower_trained = false, hr_encoder_trained = false;
};

// config.json, the tokenizer's files and those of backbone_files.h: name -> content.
std::map<std::string, std::string> model_files(const ModelContent& content, at::ScalarType dtype,
                                               bool llm_only);

// Writes `dir`, whole or not at all (checkpoint/hf_directory.h). Everything load_model needs goes
// in, both towers included, adapters left out. With `llm_only` a plain Hugging Face language model.
// One parameter is in memory at a time.
void write_model(const fs::path& dir, const ModelContent& content, at::ScalarType dtype,
                 bool llm_only, const HfDirectoryOptions& options);

}  // namespace mgm
