// config.json of a model directory: the published MGM layout (HF LLM fields plus mm_* fields) and
// plain Hugging Face language models. What the published layout does not hold (tower sizes, chat
// template, normalisation) goes under one extra key, "mgm", which other readers ignore. A chat
// template from a YAML file of the user's goes in whole.
#pragma once

#include "base/fs.h"
#include "base/json.h"
#include "config/run_config.h"

namespace mgm {

class JsonFields;

// The parts of a RunConfig that describe a model.
struct ModelDescription {
  ModelConfig model;
  ImageConfig image;
  TextConfig text;
};

// Token ids the LLM's config names; < 0: none.
struct SpecialIds {
  int64_t bos = -1, eos = -1, pad = -1;
};

OrderedJson to_hf_config(const ModelDescription& description, const SpecialIds& ids,
                         const std::string& dtype);
OrderedJson to_llm_config(const LlmConfig& llm, const SpecialIds& ids, const std::string& dtype);

// Fills everything of the LLM that a Hugging Face config.json has; the architecture is what
// model_type says, or architectures where that is absent. A model with longrope is limited to its
// original_max_position_embeddings. Throws CheckpointError naming `source` and
// the field on anything that is missing, of a wrong type, outside the limits of the config schema,
// against its rules or not supported.
void read_llm_config(const Json& json, const std::string& source, LlmConfig& llm);

// A JSON file of a model directory. Throws CheckpointError if it is none or cannot be read.
Json read_config_json(const fs::path& path);

// Throws CheckpointError with the first of a config's rules (resolve_and_check) that does not hold,
// of those whose key begins with one of `sections`.
void check_described(RunConfig config, const std::string& source,
                     const std::vector<std::string>& sections);

// mm_vision_select_feature, or `fallback` where it is absent.
SelectFeature read_select_feature(const JsonFields& fields, SelectFeature fallback);

// A whole model: LLM fields plus mm_* (and "mgm" where present).
ModelDescription read_hf_config(const Json& json, const std::string& source);

}  // namespace mgm
