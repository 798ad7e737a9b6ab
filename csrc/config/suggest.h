// What somebody who wrote an unknown key may have meant.
#pragma once

#include <string>
#include <vector>

namespace mgm {

// `key` is the dotted key as written, with [] or indices; `siblings` are the keys its section has.
// "; did you mean 'weight_decay'?", "; did you mean 'optimizer.lr'?" for a key of another section,
// or "".
std::string suggest_key(const std::string& key, const std::vector<std::string>& siblings);

// The same for a full key by itself: the nearest one of all.
std::string suggest_key(const std::string& key);

}  // namespace mgm
