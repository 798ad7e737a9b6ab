// Text for people about the keys: `mgm config help` and docs/config.md.
#pragma once

#include <string>

namespace mgm {

// About one key, or all keys below a prefix ("optimizer", "train.rules"); "" lists everything.
// Throws ConfigError with a suggestion when there is no such key.
std::string key_help(const std::string& key);

// docs/config.md.
std::string reference_markdown();

}  // namespace mgm
