// A config file as a tree whose every node knows where it came from. Only yaml_load.cpp sees
// yaml-cpp.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mgm {

// Where a value was written: "configs/a.yaml:3:7", or "--set train.seed=1".
struct Where {
  std::string source;  // file name, or the whole --set argument
  int line = 0;        // 1-based; 0 when the source has no lines
  int column = 0;

  std::string text() const;  // "file:3:7" or "--set train.seed=1"
};

struct ConfigNode {
  enum class Kind { kNull, kScalar, kMap, kSequence };
  struct Entry;

  Kind kind = Kind::kNull;
  Where where;
  std::string scalar;
  bool quoted = false;     // "1" is a string, 1 a number
  std::vector<Entry> map;  // in file order; keys are unique
  std::vector<ConfigNode> sequence;

  ConfigNode* find(const std::string& key);
  const ConfigNode* find(const std::string& key) const;
  std::string kind_name() const;  // "a list", "a mapping", "'text'", "nothing"
};

struct ConfigNode::Entry {
  std::string key;
  Where where;  // of the key
  ConfigNode value;
};

// `over` on top of `base`: maps merge key by key, everything else replaces.
ConfigNode merge(ConfigNode base, const ConfigNode& over);

// One finding about a config; printed as "where: key: message".
struct ConfigIssue {
  Where where;
  std::string key;
  std::string message;
};

// Throws ConfigError with all issues, sorted by position.
[[noreturn]] void throw_issues(std::vector<ConfigIssue> issues);

}  // namespace mgm
