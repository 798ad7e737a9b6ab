// Any bytes as a weight file: safetensors header, torch zip, pickle. A CheckpointError, or tensors
// of which every element lies inside the file.
//
// sources: csrc/formats/*.cpp
#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "formats/dtype.h"
#include "formats/pickle.h"
#include "formats/safetensors.h"
#include "formats/torch_file.h"

namespace {

using Sizes = std::vector<int64_t>;

// Every element from dimension `d` on is read, as a strided view has them.
uint64_t walk(std::string_view file, uint64_t at, const Sizes& shape, const Sizes& stride,
              uint64_t element, size_t d = 0) {
  uint64_t sum = 0;
  if (d == shape.size()) {
    if (at > file.size() || element > file.size() - at) std::abort();
    for (uint64_t i = 0; i < element; ++i) sum += static_cast<uint8_t>(file[at + i]);
    return sum;
  }
  for (int64_t i = 0; i < shape[d]; ++i) {
    sum += walk(file, at + static_cast<uint64_t>(i * stride[d]) * element, shape, stride, element,
                d + 1);
  }
  return sum;
}

// Elements are at most as many as bytes of the input, but dimensions of one cost nothing.
bool worth_walking(const Sizes& shape) {
  return shape.size() < 64 && std::find(shape.begin(), shape.end(), 0) == shape.end();
}

uint64_t walk_safetensors(std::string_view bytes) {
  uint64_t sum = 0;
  for (const auto& t : mgm::parse_safetensors_header(bytes, bytes.size(), "input").tensors) {
    const auto size = mgm::shape_bytes(t.shape, mgm::dtype_bytes(t.dtype));
    if (!size || t.end - t.begin != *size) std::abort();
    sum += walk(bytes, t.begin, {static_cast<int64_t>(*size)}, {1}, 1);
  }
  return sum;
}

uint64_t walk_torch(std::string_view bytes) {
  uint64_t sum = 0;
  for (const auto& t : mgm::parse_torch_file(bytes, "input").tensors) {
    if (t.stride.size() != t.shape.size()) std::abort();
    if (worth_walking(t.shape)) {
      sum += walk(bytes, t.begin, t.shape, t.stride, mgm::dtype_bytes(t.dtype));
    }
  }
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    if (walk_safetensors(bytes) == UINT64_MAX) std::abort();  // the sum keeps the reads
  } catch (const mgm::CheckpointError&) {
  }
  try {
    if (walk_torch(bytes) == UINT64_MAX) std::abort();
  } catch (const mgm::CheckpointError&) {
  }
  try {
    mgm::parse_state_pickle(bytes, "input");
  } catch (const mgm::CheckpointError&) {
  }
  return 0;
}
