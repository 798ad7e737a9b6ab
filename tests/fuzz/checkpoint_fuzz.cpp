// Any bytes as a weight file: safetensors header, torch zip, pickle. A CheckpointError, or tensors
// that lie inside the file.
//
// sources: csrc/formats/*.cpp
#include <cstdlib>

#include "base/error.h"
#include "formats/pickle.h"
#include "formats/safetensors.h"
#include "formats/torch_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    mgm::parse_safetensors_header(bytes, size, "input");
  } catch (const mgm::CheckpointError&) {
  }
  try {
    mgm::parse_torch_file(bytes, "input");
  } catch (const mgm::CheckpointError&) {
  }
  try {
    mgm::parse_state_pickle(bytes, "input");
  } catch (const mgm::CheckpointError&) {
  }
  return 0;
}
