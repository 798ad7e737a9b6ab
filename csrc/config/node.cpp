#include "config/node.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/error.h"

namespace mgm {

std::string Where::text() const { return line > 0 ? cat(source, ":", line, ":", column) : source; }

const ConfigNode* ConfigNode::find(std::string_view key) const {
  for (const Entry& entry : map) {
    if (entry.key == key) return &entry.value;
  }
  return nullptr;
}

ConfigNode* ConfigNode::find(std::string_view key) {
  return const_cast<ConfigNode*>(std::as_const(*this).find(key));
}

std::string ConfigNode::kind_name() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kScalar:
      return "'" + shown(scalar) + "'";
    case Kind::kMap:
      return "a mapping";
    case Kind::kSequence:
      return "a list";
  }
  return "";
}

ConfigNode merge(ConfigNode base, const ConfigNode& over) {
  if (base.kind != ConfigNode::Kind::kMap) return over;
  if (over.kind == ConfigNode::Kind::kNull && !over.reported) return base;
  if (over.kind != ConfigNode::Kind::kMap) return over;
  for (const ConfigNode::Entry& entry : over.map) {
    const auto old = std::find_if(base.map.begin(), base.map.end(),
                                  [&](const auto& have) { return have.key == entry.key; });
    if (old == base.map.end()) {
      base.map.push_back(entry);
    } else {
      old->where = entry.where;
      old->value = merge(std::move(old->value), entry.value);
    }
  }
  base.where = over.where;
  return base;
}

std::string shown(std::string_view text) {
  constexpr size_t kMost = 120;
  std::string out;
  for (const char c : text.substr(0, kMost)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += strf("\\x%02x", byte);
    } else {
      out += c;
    }
  }
  return text.size() > kMost ? out + "..." : out;
}

void throw_issues(std::vector<ConfigIssue> issues) {
  constexpr size_t kMost = 100;  // a file that is no config at all has thousands
  const auto place = [](const ConfigIssue& issue) {
    return std::tie(issue.where.source, issue.where.line, issue.where.column);
  };
  std::stable_sort(issues.begin(), issues.end(),
                   [&](const ConfigIssue& a, const ConfigIssue& b) { return place(a) < place(b); });
  // Stages share the common part of their file, so the same finding can come once per stage.
  std::vector<ConfigIssue> unique;
  for (ConfigIssue& issue : issues) {
    const auto same_place = [&](const ConfigIssue& other) { return place(other) == place(issue); };
    bool known = false;
    for (auto it = unique.rbegin(); it != unique.rend() && same_place(*it); ++it) {
      known = known || *it == issue;
    }
    if (!known) unique.push_back(std::move(issue));
  }
  std::string text;
  for (size_t i = 0; i < unique.size() && i < kMost; ++i) {
    if (i) text += "\n";
    text += unique[i].where.text() + ": ";
    if (!unique[i].key.empty()) text += unique[i].key + ": ";
    text += unique[i].message;
  }
  if (unique.size() > kMost) text += cat("\n... and ", unique.size() - kMost, " more problems");
  throw ConfigError(text);
}

}  // namespace mgm
