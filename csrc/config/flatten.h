// A RunConfig as a flat list of keys: what printing, comparing and documenting share.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.h"

namespace mgm {

struct FlatField {
  std::string key;    // "train.rules[0].match"
  std::string value;  // as YAML writes it
  std::string type;   // "bool", "int", "number", "text", "choice", "list of ...", "section"
  std::string limits, help;
  bool required = false;  // of a list item: it has no default
};

// Every value of `config`, in the order of the structs; an empty list is one field "[]".
std::vector<FlatField> flatten(const RunConfig& config);

// Every key there is, with its default; sections and lists are fields too, and what the items of a
// list hold is described once, with [] for the index ("train.rules[].match").
const std::vector<FlatField>& config_keys();

}  // namespace mgm
