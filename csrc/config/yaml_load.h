// YAML text -> ConfigNode. Stricter than YAML: duplicate keys, merge keys (<<), anchors and
// aliases, tags and several documents are errors, because each of them hides what a run was told.
#pragma once

#include <string>
#include <string_view>

#include "base/fs.h"
#include "config/node.h"

namespace mgm {

// Throws ConfigError "source:line:col: ...". An empty text is an empty map.
ConfigNode parse_yaml(std::string_view text, const std::string& source);

// One value as written behind `--set key=`; `where` names the argument.
ConfigNode parse_yaml_value(std::string_view text, const Where& where);

// Loads `path` and the parents its `extends:` names (one name or a list, merged in order, then the
// file itself). A parent is a file relative to the including one, with or without ".yaml", or an
// embedded preset such as base/vicuna_7b. Throws ConfigError on a cycle, showing the chain.
ConfigNode load_config_tree(const std::string& path);

// The parents a node's own `extends` names, merged, under the node; for the items of `stages`.
ConfigNode apply_extends(const ConfigNode& node, const std::string& including_file);

}  // namespace mgm
