// A config file and the parents its `extends:` names, as trees.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "config/node.h"

namespace mgm {

// Loads one run's files. A parent is a file relative to the including one, with or without
// ".yaml", or else an embedded preset such as base/vicuna_7b.
class TreeLoader {
 public:
  explicit TreeLoader(std::vector<ConfigIssue>& issues) : issues_(issues) {}

  // The file (or embedded preset) as written, `extends` included. Issues go to `issues`; nothing is
  // returned when there is no tree.
  std::optional<ConfigNode> read(const std::string& path);

  // Takes `extends` out of `node`, a part of the file read last, and returns what it names, merged
  // in order; an empty map without `extends`. A cycle, a missing parent or a broken one is an issue
  // and is left out.
  ConfigNode take_parents(ConfigNode& node);

  // False once a parent was left out: what is missing then says nothing about the config.
  bool complete() const { return complete_; }

 private:
  struct Source {
    std::string shown;     // "configs/a.yaml" or "built-in base/hd.yaml"
    std::string identity;  // the same for every spelling of a path
    std::string file;      // relative parents are looked up beside it; empty for embedded presets
    std::string text;
  };
  static std::optional<Source> find_embedded(const std::string& name);
  static Source read_source(const std::string& path);
  std::optional<Source> find_parent(const ConfigNode& name, const std::string& including_file);
  ConfigNode take_parents(ConfigNode& node, const std::vector<Source>& chain);
  std::optional<ConfigNode> load_parent(const ConfigNode& name, const std::vector<Source>& chain);

  std::vector<ConfigIssue>& issues_;
  Source root_;
  int loaded_ = 0;
  bool complete_ = true;
};

}  // namespace mgm
