// What a model directory or a weights file holds, from headers alone.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/fs.h"
#include "base/json.h"

namespace mgm {

struct InspectedTensor {
  std::string name, dtype;  // dtype: as stored ("BF16", "Q4_K")
  std::vector<int64_t> shape;
  uint64_t bytes = 0;  // as read
  std::string file;    // without its folder
};

struct InspectedPart {
  std::string name;    // "vision tower"
  size_t tensors = 0;  // inside
  std::string place;   // "inside", "beside: PATH", "missing: PATH"
};

struct Inspection {
  std::string path;
  std::string kind;          // "language model", "Mini-Gemini model", "CLIP", "LoRA adapter", ...
  std::string format;        // "safetensors", "torch", "GGUF 3"
  std::string architecture;  // model_type or general.architecture; empty where nothing says it
  std::string class_name;    // of config.json
  std::string generation;    // of a Mini-Gemini's class names: "mgm" (current) or "mini_gemini"
  std::map<std::string, int64_t> sizes;  // fields of config.json, by their names there
  uint64_t parameters = 0, bytes = 0;
  std::map<std::string, size_t> dtypes;  // tensors of each
  std::map<std::string, size_t> files;   // tensors of each
  std::vector<std::string> tokenizer_files;
  std::string chat_template;  // which one is there, and which built-in format says the same
  std::vector<InspectedPart> parts;
  std::vector<std::string> notes;  // what would keep it from being loaded
  std::vector<InspectedTensor> tensors;
};

// The part of a model that a tensor belongs to, by its name in any of the formats: "language
// model", "HR tower", "OpenCLIP ConvNeXt", "adapter", ...; "other" where the name tells nothing.
std::string part_of(const std::string& name);

// Throws CheckpointError if no weights can be opened there.
Inspection inspect_weights(const fs::path& path);

OrderedJson to_json(const Inspection& inspection, bool tensors);

}  // namespace mgm
