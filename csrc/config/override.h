// `--set a.b=c`: one value on top of a config tree.
#pragma once

#include <string>
#include <vector>

#include "config/node.h"

namespace mgm {

// Applies "train.seed=1" or "train.rules[0].lr_scale=2" to `root`. The value is YAML, so lists and
// mappings may be given: 'optimizer.betas=[0.9, 0.95]'. A mapping merges, everything else replaces;
// an index must name an item that the files have. What is wrong with the argument is added to
// `issues`, at the place "--set <argument>"; the tree is then left as it was and false returned.
bool apply_set(ConfigNode& root, const std::string& argument, std::vector<ConfigIssue>& issues);

}  // namespace mgm
