// A RunConfig as YAML that reads back to the same RunConfig.
#pragma once

#include <string>
#include <vector>

#include "config/reader.h"

namespace mgm {

// Every key with its value. With `origins`, each line ends in a comment that says where the value
// came from.
std::string to_yaml(const RunConfig& config, const std::map<std::string, Where>* origins = nullptr);

// One line of a flat listing.
struct FlatField {
  std::string key;    // "train.rules[0].match"
  std::string value;  // as YAML writes it
  std::string type, limits, help;
};
// `document`: list items are described once, with [] for the index.
std::vector<FlatField> flatten(const RunConfig& config, bool document = false);

// docs/config.md.
std::string reference_markdown();

}  // namespace mgm
