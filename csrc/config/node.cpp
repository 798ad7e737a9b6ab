#include "config/node.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"

namespace mgm {

std::string Where::text() const { return line > 0 ? cat(source, ":", line, ":", column) : source; }

const ConfigNode* ConfigNode::find(const std::string& key) const {
  for (const Entry& entry : map) {
    if (entry.key == key) return &entry.value;
  }
  return nullptr;
}

ConfigNode* ConfigNode::find(const std::string& key) {
  return const_cast<ConfigNode*>(static_cast<const ConfigNode*>(this)->find(key));
}

std::string ConfigNode::kind_name() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kScalar:
      return "'" + scalar + "'";
    case Kind::kMap:
      return "a mapping";
    case Kind::kSequence:
      return "a list";
  }
  return "";
}

ConfigNode merge(ConfigNode base, const ConfigNode& over) {
  if (base.kind != ConfigNode::Kind::kMap || over.kind != ConfigNode::Kind::kMap) return over;
  for (const ConfigNode::Entry& entry : over.map) {
    if (ConfigNode* old = base.find(entry.key)) {
      *old = merge(std::move(*old), entry.value);
    } else {
      base.map.push_back(entry);
    }
  }
  base.where = over.where;
  return base;
}

void throw_issues(std::vector<ConfigIssue> issues) {
  std::stable_sort(issues.begin(), issues.end(), [](const ConfigIssue& a, const ConfigIssue& b) {
    return std::tie(a.where.source, a.where.line, a.where.column) <
           std::tie(b.where.source, b.where.line, b.where.column);
  });
  std::string text;
  for (const ConfigIssue& issue : issues) {
    if (!text.empty()) text += "\n";
    text += issue.where.text() + ": ";
    if (!issue.key.empty()) text += issue.key + ": ";
    text += issue.message;
  }
  throw ConfigError(text);
}

}  // namespace mgm
