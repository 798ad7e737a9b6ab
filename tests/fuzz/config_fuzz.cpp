// Any bytes as the config.json of a language model: a typed error, or sizes within the limits of
// the config schema that write themselves and read back.
//
// sources: csrc/assemble/hf_llm_config.cpp csrc/config/llm_arch.cpp csrc/config/run_rules.cpp
//
// sources: csrc/config/run_config.cpp csrc/config/image_geometry.cpp csrc/config/scalar.cpp
//
// sources: csrc/config/node.cpp
#include <cstdlib>

#include "assemble/hf_config.h"
#include "base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    mgm::LlmConfig llm, again;
    mgm::read_llm_config(mgm::parse_json(text, "input"), "input", llm);
    if (llm.num_heads < 1 || llm.num_kv_heads < 1 || llm.num_layers > 4096) std::abort();
    const std::string written = mgm::to_llm_config(llm, {1, 2, 0}, "float32").dump();
    mgm::read_llm_config(mgm::parse_json(written, "again"), "again", again);
    if (again.hidden_size != llm.hidden_size || again.num_layers != llm.num_layers) std::abort();
  } catch (const mgm::DataError&) {
  } catch (const mgm::CheckpointError&) {
  }
  return 0;
}
