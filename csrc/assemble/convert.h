// From any weights that can be read (a model directory, a GGUF file, a torch or safetensors file,
// the index of a sharded model) to a directory of safetensors shards with index, config and the
// small files that lay beside the weights. Tensor after tensor: memory holds one of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/hf_directory.h"
#include "checkpoint/tensor_source.h"

namespace mgm {

struct ConvertRequest {
  fs::path from, out;
  // Of tensors of a float type, others stay; default: every tensor as it is, unpacked GGUF types as
  // fp32. A value that fp16 cannot hold is a CheckpointError.
  std::optional<at::ScalarType> dtype;
  HfDirectoryOptions directory;
};

struct ConvertReport {
  size_t tensors = 0, converted = 0;  // converted: of another type than in the source
  uint64_t bytes = 0;
  std::vector<std::string> copied;       // small files
  std::vector<std::string> not_copied;   // other files beside the weights
  std::vector<std::string> not_tensors;  // values of torch files that safetensors cannot hold
  bool tokenizer = false;                // one is among the files
  std::string tokenizer_problem;         // why that of a GGUF file is not
};

// Throws CheckpointError, ConfigError if `out` is the source itself.
ConvertReport convert_weights(const ConvertRequest& request);

// A file of any format, an index, or a directory.
SourcePtr open_weights(const fs::path& path);

// Whether a file name is one a tokenizer is read from.
bool is_tokenizer_file(const std::string& name);

}  // namespace mgm
