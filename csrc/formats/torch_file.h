// Files of torch.save (version 1.6 and newer): a zip archive with one pickle that names the tensors
// and one entry per storage. Source: torch/serialization.py, caffe2/serialize/inline_container.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/zip.h"

namespace mgm {

struct TorchTensor {
  std::string name;   // keys of nested dicts joined by '.'
  std::string dtype;  // formats/dtype.h
  std::vector<int64_t> shape;
  std::vector<int64_t> stride;  // elements, not negative
  uint64_t begin = 0;           // byte of the first element in the file
};

struct TorchFile {
  std::vector<TorchTensor> tensors;       // in the order of the dicts
  std::vector<std::string> other_values;  // names of what is no tensor: numbers, text, lists, ...
};

// Every element of every tensor lies inside `file`, and no tensor has more elements than its
// storage. Throws CheckpointError naming `source`, see formats/zip.h and formats/pickle.h;
// big-endian files are refused.
TorchFile parse_torch_file(std::string_view file, const std::string& source);

struct TorchFileEntry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;  // contiguous
};

// The archive around the tensors' bytes, written in this order: begin(), then for each tensor
// before(i, bytes, crc) and its bytes, then end().
class TorchFileLayout {
 public:
  explicit TorchFileLayout(std::vector<TorchFileEntry> tensors);
  std::string begin();
  // Throws InternalError if `bytes` is not what dtype and shape say.
  std::string before(size_t i, uint64_t bytes, uint32_t crc);
  std::string end();

 private:
  std::vector<TorchFileEntry> tensors_;
  ZipLayout zip_;
};

}  // namespace mgm
