// Files of named tensors, written one tensor at a time: memory holds what `get` returns and nothing
// else. Each file appears whole under its name (temporary file, fsync, rename) or not at all.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/fs.h"

namespace mgm {

struct TensorSpec {
  std::string name;
  at::ScalarType type = at::kFloat;
  std::vector<int64_t> shape;

  uint64_t bytes() const;
};

// Gives a tensor of the announced type and shape, on any device; asked for once per name.
using TensorGetter = std::function<at::Tensor(const std::string& name)>;

struct WrittenFile {
  uint64_t size = 0;
  uint64_t hash = 0;  // xxh3-64 of what was to be written
};

// Throw Error(kInternal): disk full, folder not writable, `get` returned something else than
// announced, two tensors of one name. `metadata` goes into the header.
WrittenFile write_safetensors(const fs::path& path, const std::vector<TensorSpec>& tensors,
                              const TensorGetter& get,
                              const std::map<std::string, std::string>& metadata = {});
WrittenFile write_safetensors(const fs::path& path,
                              const std::map<std::string, at::Tensor>& tensors);
// A flat dict, as torch.save writes it; torch.load(weights_only=True) reads it. A type without a
// torch storage class (float8, unsigned beyond uint8) is a CheckpointError.
WrittenFile write_torch_file(const fs::path& path, const std::vector<TensorSpec>& tensors,
                             const TensorGetter& get);

}  // namespace mgm
