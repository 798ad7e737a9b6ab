// The safetensors file format: an 8-byte little-endian header length, a JSON header, then the
// tensors' bytes. Parsing trusts nothing: a hostile or cut file gives a CheckpointError and never a
// read outside the file. Source: the format description of the safetensors project.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mgm {

struct TensorEntry {
  std::string name;
  std::string dtype;  // formats/dtype.h
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // byte range in the file
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in file order
  std::map<std::string, std::string> metadata;
};

// `head`: the first bytes of a file of `file_size` bytes, its header at least. Checks that the
// tensors tile the data section exactly: no hole, no overlap, sizes as dtype and shape say, no name
// twice. Throws CheckpointError naming `source`.
SafetensorsHeader parse_safetensors_header(std::string_view head, uint64_t file_size,
                                           const std::string& source);

// Puts the tensors into the order of writing (widest elements first, then by name, as safetensors
// does, so that every tensor is aligned), fills begin and end and returns the header's bytes:
// length word, JSON with `__metadata__ {"format": "pt"}` and what `metadata` adds, padding to 8.
std::string make_safetensors_header(std::vector<TensorEntry>& tensors,
                                    const std::map<std::string, std::string>& metadata = {});

}  // namespace mgm
