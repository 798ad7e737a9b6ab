// A RunConfig as YAML that reads back to the same RunConfig, and the difference of two.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "config/reader.h"

namespace mgm {

// Every key with its value. With `origins`, each line ends in a comment that says where the value
// came from. What parse_run_config reads back.
std::string to_yaml(const RunConfig& config, const std::map<std::string, Where>* origins = nullptr);

// The same for the stages of one file, as a file with `stages:`; one stage gives a plain config.
std::string to_yaml(const std::vector<ResolvedConfig>& stages, bool with_origins);

struct ConfigDifference {
  std::string key;
  std::optional<std::string> a, b;  // as YAML; nothing where the list item does not exist
};

// In the order of the keys.
std::vector<ConfigDifference> diff(const RunConfig& a, const RunConfig& b);

}  // namespace mgm
