// A Hugging Face model directory, as save_pretrained writes it: config.json and other small files
// beside model.safetensors, or beside model-00001-of-0000N.safetensors with
// model.safetensors.index.json where one file would be larger than a shard may be.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/tensor_writer.h"

namespace mgm {

struct HfDirectory {
  std::vector<TensorSpec> tensors;  // in the order shards are filled
  TensorGetter get;                 // called once per tensor, shard by shard
  // Safetensors files beside the shards, as adapter_model.safetensors: name -> content. Tensors of
  // all files have different names.
  std::map<std::string, std::vector<TensorSpec>> tensor_files;
  std::map<std::string, std::string> files;  // config.json, tokenizer files: name -> content
};

struct HfDirectoryOptions {
  uint64_t max_shard_bytes = 5'000'000'000;  // "5GB" of transformers; one larger tensor is a shard
  bool replace = false;                      // see below
  // Called with the folder that everything has been written to, before it becomes `dir`. If it
  // throws, that folder is removed, and what was at `dir` stays.
  std::function<void(const fs::path&)> check = {};
};

// Writes `dir`.tmp, fsyncs and renames it, so that `dir` is whole or not there; a `dir`.tmp that
// was left unfinished by a crash is removed first, and a failed write removes its own. A `dir` that
// exists and is not empty is refused (CheckpointError), unless `replace`: then it must look like a
// model, tower or adapter directory (a config of one and no sub-folders), is moved to `dir`.old,
// and removed once the new one is in place. Anything else at `dir`.tmp or, with something to
// replace, at `dir`.old is refused: it is not ours to remove. Throws Error(kInternal) on a full
// disk, before writing if the free space cannot suffice.
void write_hf_directory(const fs::path& dir, const HfDirectory& content,
                        const HfDirectoryOptions& options = {});

// The same refusals before any work is done (ConfigError for an empty name): `dir` must be absent
// or an empty folder, or with `replace` a flat folder with a config.json, open_clip_config.json or
// adapter_config.json. Throws CheckpointError.
void check_hf_target(const fs::path& dir, bool replace);

// Which tensors go to which shard (indices into `tensors`); the rule of huggingface_hub's
// split_torch_state_dict_into_shards.
std::vector<std::vector<size_t>> plan_shards(const std::vector<TensorSpec>& tensors,
                                             uint64_t max_shard_bytes);

}  // namespace mgm
