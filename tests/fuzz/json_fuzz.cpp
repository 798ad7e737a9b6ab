// Any bytes as JSON and as a shard index: a typed error or a value that writes itself and reads
// back.
//
// sources: csrc/formats/shard_index.cpp
#include <cstdlib>

#include "base/error.h"
#include "base/json.h"
#include "formats/shard_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const mgm::Json value = mgm::parse_json(text, "input");
    if (mgm::parse_json(value.dump(), "again") != value) std::abort();
  } catch (const mgm::Error&) {
  }
  try {
    const mgm::ShardIndex index = mgm::parse_shard_index(text, "input");
    mgm::parse_shard_index(mgm::make_shard_index(index), "again");
  } catch (const mgm::Error&) {
  }
  return 0;
}
