// A GGUF file as weights: under Hugging Face names, quantised tensors as fp32, llama.cpp's changes
// undone (checkpoint/gguf_names.h), stacked experts as one tensor each. A tensor is unpacked when
// it is asked for; memory holds that one.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/tensor_source.h"

namespace mgm {

// Throws CheckpointError naming the file: damaged (formats/gguf.h), an architecture or tensors that
// are not known (all of them listed), a type that cannot be unpacked, a part of a split model.
SourcePtr open_gguf(const fs::path& file);

// The file as it is: llama.cpp's names, values unpacked and nothing undone.
SourcePtr open_gguf_as_stored(const fs::path& file);

// The same with every tensor as the bytes it takes in the file (uint8, a view of the mapping):
// nothing is unpacked, and only bytes that are looked at are read.
SourcePtr open_gguf_packed(const fs::path& file);

// config.json and generation_config.json of the same model (checkpoint/gguf_config.h).
struct GgufConfigs {
  OrderedJson config, generation;
};
GgufConfigs read_gguf_configs(const fs::path& file);

// By its name or its first bytes: one that is named so and is damaged is explained as a GGUF file.
bool is_gguf_file(const fs::path& file);

// The *.gguf of a folder, sorted.
std::vector<fs::path> gguf_files(const fs::path& dir);

}  // namespace mgm
