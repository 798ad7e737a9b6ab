// `model.safetensors.index.json` (and `pytorch_model.bin.index.json`): which shard of a model
// directory holds which tensor.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mgm {

struct ShardIndex {
  std::map<std::string, std::string> weight_map;  // tensor name -> file name in the same folder
  uint64_t total_size = 0;                        // bytes of all tensors; written, not read
  uint64_t total_parameters = 0;                  // elements of all tensors; written, not read

  std::vector<std::string> files() const;  // each once, sorted
};

// Throws CheckpointError naming `source`: not JSON, no weight_map, a tensor twice, or a shard that
// is not a plain file name (an index must not lead out of its folder).
ShardIndex parse_shard_index(std::string_view text, const std::string& source);

std::string make_shard_index(const ShardIndex& index);

}  // namespace mgm
