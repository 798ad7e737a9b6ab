// From any weights that can be read (a directory of a model, a vision tower or an adapter, a GGUF
// file, a torch or safetensors file, the index of a sharded model) to a directory of safetensors
// with config and the small files that lay beside the weights. Tensor after tensor: memory holds
// one of them.
//   a model, a CLIP      shards with an index, as checkpoint/hf_directory.h
//   OpenCLIP's ConvNeXt  open_clip_model.safetensors under OpenCLIP's own names; of a training
//                        checkpoint nothing else
//   an adapter           the files of checkpoint/adapter_file.h under the names of PEFT
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
  fs::path adapter;  // a directory of a LoRA adapter to fold into the weights; empty: none
  // Of tensors of a float type, others stay; default: every tensor as it is, unpacked GGUF types as
  // fp32. A value that fp16 cannot hold is a CheckpointError.
  std::optional<at::ScalarType> dtype;
  HfDirectoryOptions directory;
};

struct ConvertReport {
  size_t tensors = 0, converted = 0;  // converted: of another type than in the source
  // By the adapter: weights with W + scale B A, others whole, and those the model did not have.
  size_t folded = 0, replaced = 0, added = 0;
  uint64_t bytes = 0;
  std::vector<std::string> copied;       // small files
  std::vector<std::string> not_copied;   // other files beside the weights
  std::vector<std::string> towers_left;  // folders beside config.json that it names as towers
  std::vector<std::string> not_tensors;  // values of torch files that safetensors cannot hold
  size_t left_out = 0;                   // tensors of a training checkpoint that are no weights
  bool language_model = false;           // some of the tensors are one's
  bool tokenizer = false;                // one is among the files
  std::string tokenizer_problem;         // why that of a GGUF file is not
};

// Throws CheckpointError, ConfigError if `out` would take the place of what is read.
ConvertReport convert_weights(const ConvertRequest& request);

// A file of any format, an index, or a directory.
SourcePtr open_weights(const fs::path& path);

// Whether a file name is one a tokenizer is read from.
bool is_tokenizer_file(const std::string& name);

}  // namespace mgm
