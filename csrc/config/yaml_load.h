// YAML text -> ConfigNode. Stricter than YAML: duplicate keys, merge keys (<<), anchors and
// aliases, tags, several documents and text that is not UTF-8 are errors, because each of them
// hides what a run was told. Text of any content gives a tree or issues, in bounded time and
// memory: at most 1 MiB, 32 levels, 20,000 values.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/node.h"

namespace mgm {

inline constexpr size_t kMaxConfigDepth = 32;

// A config file: a mapping, empty for an empty text. What is wrong is added to `issues`; nothing is
// returned when the text gives no tree at all.
std::optional<ConfigNode> parse_yaml(std::string_view text, const std::string& source,
                                     std::vector<ConfigIssue>& issues);

// One value as written behind `--set key=`; `where` names the argument and becomes the place of
// every node.
std::optional<ConfigNode> parse_yaml_value(std::string_view text, const Where& where,
                                           std::vector<ConfigIssue>& issues);

}  // namespace mgm
