// A config file as a tree whose every node knows where it came from. Only yaml_load.cpp sees
// yaml-cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mgm {

// Where a value was written: "configs/a.yaml:3:7", "built-in base/hd.yaml:2:3" or
// "--set train.seed=1".
struct Where {
  std::string source;  // file name, or the whole --set argument
  int line = 0;        // 1-based; 0 when the source has no lines
  int column = 0;

  std::string text() const;
  bool operator==(const Where&) const = default;
};

struct ConfigNode {
  enum class Kind { kNull, kScalar, kMap, kSequence };
  struct Entry;

  Kind kind = Kind::kNull;
  Where where;
  std::string scalar;
  bool quoted = false;     // "1" is a string, 1 a number
  bool reported = false;   // an issue about this node exists already; readers pass over it
  std::vector<Entry> map;  // in file order; keys are unique
  std::vector<ConfigNode> sequence;

  ConfigNode* find(std::string_view key);
  const ConfigNode* find(std::string_view key) const;
  std::string kind_name() const;  // "a list", "a mapping", "'text'", "nothing"
};

struct ConfigNode::Entry {
  std::string key;
  Where where;  // of the key
  ConfigNode value;
};

// `over` on top of `base`: maps merge key by key; an empty value (`data:`) leaves a map as it is;
// everything else replaces.
ConfigNode merge(ConfigNode base, const ConfigNode& over);

// Text from a file as it may stand in a one-line message: control characters escaped, long text
// cut.
std::string shown(std::string_view text);

// One finding about a config; printed as "where: key: message".
struct ConfigIssue {
  Where where;
  std::string key;  // dotted; may be empty
  std::string message;
  bool operator==(const ConfigIssue&) const = default;
};

// Throws ConfigError with all issues, sorted by position, each one once.
[[noreturn]] void throw_issues(std::vector<ConfigIssue> issues);

}  // namespace mgm
