// Any bytes as a config: a ConfigError, or a config that writes itself and reads back to the same
// text.
//
// sources: csrc/config/*.cpp build/release/embedded.cpp
//
// flags: -lyaml-cpp
#include <cstdlib>

#include "base/error.h"
#include "config/reader.h"
#include "config/writer.h"
#include "config/yaml_load.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  std::vector<mgm::ConfigIssue> issues;
  if (!mgm::parse_yaml(text, "input", issues) && issues.empty()) std::abort();  // silent
  try {
    const mgm::ResolvedConfig resolved = mgm::parse_run_config(text, "input");
    const std::string written = mgm::to_yaml(resolved.config, nullptr);
    if (mgm::to_yaml(mgm::parse_run_config(written, "again").config, nullptr) != written)
      std::abort();
  } catch (const mgm::ConfigError&) {
  }
  return 0;
}
