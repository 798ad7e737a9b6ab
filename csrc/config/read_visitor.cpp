#include "config/read_visitor.h"

#include "base/strings.h"
#include "config/field_range.h"
#include "config/scalar.h"
#include "config/suggest.h"

namespace mgm {
namespace {

using Kind = ConfigNode::Kind;

}  // namespace

ReadVisitor::ReadVisitor(const ConfigNode& root, std::vector<ConfigIssue>& issues,
                         std::map<std::string, Where>& origins)
    : issues_(issues), origins_(origins) {
  frames_.push_back({&root, "", {}, {}});
}

void ReadVisitor::finish() { report_unknown(); }

// ---- values -------------------------------------------------------------------------------------

void ReadVisitor::field(const char* key, bool& value, const char*) {
  const ConfigNode* node = scalar(key, "true or false");
  if (!node) return;
  const auto parsed = parse_bool(node->scalar, node->quoted);
  if (const auto* bad = std::get_if<BadScalar>(&parsed)) return issue(*node, key, bad->message);
  value = std::get<bool>(parsed);
}

void ReadVisitor::field(const char* key, int64_t& value, const char*, Range range) {
  if (const ConfigNode* node = scalar(key, "a whole number")) read(*node, key, value, range);
}

void ReadVisitor::field(const char* key, double& value, const char*, Range range) {
  if (const ConfigNode* node = scalar(key, "a number")) read(*node, key, value, range);
}

void ReadVisitor::field(const char* key, std::string& value, const char*) {
  const ConfigNode* node = take(key);
  if (!node) return;
  if (node->kind == Kind::kNull) {
    value.clear();
  } else if (node->kind == Kind::kScalar) {
    value = node->scalar;
  } else {
    issue(*node, key, cat("expected text, got ", node->kind_name()));
  }
}

void ReadVisitor::field(const char* key, std::vector<int64_t>& value, const char*, Range each) {
  read_list(key, value, "a whole number", each);
}

void ReadVisitor::field(const char* key, std::vector<double>& value, const char*, Range each) {
  read_list(key, value, "a number", each);
}

void ReadVisitor::field(const char* key, std::vector<std::string>& value, const char*) {
  read_list(key, value, "text", {});
}

void ReadVisitor::enum_field(const char* key, const std::vector<std::string>& names, int& index,
                             const char*) {
  const ConfigNode* node = scalar(key, "one of " + join(names, ", "));
  if (!node) return;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] != node->scalar) continue;
    index = static_cast<int>(i);
    return;
  }
  const std::string near = node->scalar.size() < 80 ? closest(node->scalar, names) : "";
  issue(*node, key,
        cat("expected one of ", join(names, ", "), "; got ", node->kind_name(),
            near.empty() ? "" : cat("; did you mean '", near, "'?")));
}

void ReadVisitor::read(const ConfigNode& node, const std::string& key, int64_t& value,
                       const Range& range) {
  const auto parsed = parse_int(node.scalar, node.quoted);
  if (const auto* bad = std::get_if<BadScalar>(&parsed)) return issue(node, key, bad->message);
  const auto number = std::get<int64_t>(parsed);
  if (in_range(node, key, static_cast<double>(number), range)) value = number;
}

void ReadVisitor::read(const ConfigNode& node, const std::string& key, double& value,
                       const Range& range) {
  const auto parsed = parse_number(node.scalar, node.quoted);
  if (const auto* bad = std::get_if<BadScalar>(&parsed)) return issue(node, key, bad->message);
  const auto number = std::get<double>(parsed);
  if (in_range(node, key, number, range)) value = number;
}

void ReadVisitor::read(const ConfigNode& node, const std::string&, std::string& value,
                       const Range&) {
  value = node.scalar;
}

bool ReadVisitor::in_range(const ConfigNode& node, const std::string& key, double number,
                           const Range& range) {
  const bool ok = mgm::in_range(number, range);
  if (!ok) issue(node, key, cat("must be ", range_text(range), ", got ", node.scalar));
  return ok;
}

template <class T>
void ReadVisitor::read_list(const char* key, std::vector<T>& value, const char* expected,
                            const Range& each) {
  const ConfigNode* node = take(key);
  if (!node) return;
  if (node->kind != Kind::kSequence) {
    return issue(*node, key, cat("expected a list, got ", node->kind_name()));
  }
  std::vector<T> out(node->sequence.size());
  for (size_t i = 0; i < out.size(); ++i) {
    const ConfigNode& item = node->sequence[i];
    const std::string name = cat(key, "[", i, "]");
    if (item.reported) {
      unusable_.insert(path(name));
    } else if (item.kind == Kind::kScalar) {
      read(item, name, out[i], each);
    } else {
      issue(item, name, cat("expected ", expected, ", got ", item.kind_name()));
    }
  }
  value = std::move(out);
}

void ReadVisitor::required(const char* key) {
  const Frame& frame = frames_.back();
  if (frame.node && !frame.node->find(key)) issue(*frame.node, key, "is required here");
}

// ---- structure ----------------------------------------------------------------------------------

void ReadVisitor::begin_section(const char* key, const char*) {
  const ConfigNode* node = take(key);
  if (node && node->kind == Kind::kNull) node = nullptr;  // `data:` with nothing below
  if (node && node->kind != Kind::kMap) {
    issue(*node, key, cat("expected a mapping, got ", node->kind_name()));
    node = nullptr;
  }
  frames_.push_back({node, path(key), {}, {}});
}

void ReadVisitor::end_section() {
  report_unknown();
  frames_.pop_back();
}

size_t ReadVisitor::begin_list(const char* key, size_t, const char*) {
  const ConfigNode* node = take(key);
  if (node && node->kind != Kind::kSequence) {
    issue(*node, key,
          cat("expected a list, got ", node->kind_name(),
              node->kind == Kind::kNull ? "; write [] for none" : ""));
    node = nullptr;
  }
  lists_.push_back({node, path(key)});
  return node ? node->sequence.size() : 0;
}

void ReadVisitor::begin_item(size_t index) {
  const List& list = lists_.back();
  const ConfigNode* node = &list.node->sequence[index];
  const std::string name = cat(list.path, "[", index, "]");
  origins_[name] = node->where;
  if (node->kind != Kind::kMap) {
    unusable_.insert(name);
    if (!node->reported) {
      issues_.push_back({node->where, name, cat("expected a mapping, got ", node->kind_name())});
    }
    node = nullptr;
  }
  frames_.push_back({node, name, {}, {}});
}

void ReadVisitor::end_item() { end_section(); }

void ReadVisitor::end_list() { lists_.pop_back(); }

// ---- helpers ------------------------------------------------------------------------------------

std::string ReadVisitor::path(const std::string& key) const {
  const std::string& prefix = frames_.back().path;
  return prefix.empty() ? key : prefix + "." + key;
}

void ReadVisitor::issue(const ConfigNode& node, const std::string& key,
                        const std::string& message) {
  unusable_.insert(path(key));
  issues_.push_back({node.where, path(key), message});
}

// The node under `key`; null when it is not there or was reported by the loader.
const ConfigNode* ReadVisitor::take(const char* key) {
  Frame& frame = frames_.back();
  frame.keys.emplace_back(key);
  if (!frame.node) return nullptr;
  const ConfigNode* node = frame.node->find(key);
  if (!node) return nullptr;
  frame.seen.insert(key);
  if (node->reported) {
    unusable_.insert(path(key));
    return nullptr;
  }
  origins_[path(key)] = node->where;
  return node;
}

// The scalar under `key`, or null (with an issue when something else is there).
const ConfigNode* ReadVisitor::scalar(const char* key, const std::string& expected) {
  const ConfigNode* node = take(key);
  if (!node || node->kind == Kind::kScalar) return node;
  issue(*node, key, cat("expected ", expected, ", got ", node->kind_name()));
  return nullptr;
}

void ReadVisitor::report_unknown() {
  const Frame& frame = frames_.back();
  if (!frame.node) return;
  for (const ConfigNode::Entry& entry : frame.node->map) {
    if (frame.seen.count(entry.key)) continue;
    const std::string name = path(shown(entry.key));
    const bool dotted = entry.key.find('.') != entry.key.npos;
    issues_.push_back({entry.where, name,
                       cat("unknown key", dotted ? "; keys with dots are for --set, here the parts "
                                                   "are nested mappings"
                                                 : suggest_key(name, frame.keys))});
  }
}

}  // namespace mgm
