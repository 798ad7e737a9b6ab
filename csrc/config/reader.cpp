#include "config/reader.h"

#include <charconv>
#include <cmath>
#include <set>

#include "base/error.h"
#include "config/yaml_load.h"

namespace mgm {
namespace {

using Kind = ConfigNode::Kind;

// YAML 1.1 spellings that look like something else than the text they are here.
const char* boolean_advice(const std::string& text) {
  for (const char* word : {"yes", "no", "on", "off", "y", "n", "True", "False", "TRUE", "FALSE"}) {
    if (text == word || to_lower(text) == word) return "; write true or false";
  }
  return "";
}

// Walks a struct's fields beside the node they should come from.
class ReadVisitor : public FieldVisitor {
 public:
  ReadVisitor(const ConfigNode& root, std::vector<ConfigIssue>& issues,
              std::map<std::string, Where>& origins)
      : issues_(issues), origins_(origins) {
    frames_.push_back({&root, "", {}, {}});
  }

  void finish() { report_unknown(); }

  void field(const char* key, bool& value, const char*) override {
    if (const ConfigNode* node = scalar(key, "true or false")) {
      if (node->scalar == "true" && !node->quoted) {
        value = true;
      } else if (node->scalar == "false" && !node->quoted) {
        value = false;
      } else {
        issue(
            *node, key,
            cat("expected true or false, got '", node->scalar, "'", boolean_advice(node->scalar)));
      }
    }
  }
  void field(const char* key, int64_t& value, const char*, Range range) override {
    if (const ConfigNode* node = scalar(key, "a whole number")) read_int(*node, key, value, range);
  }
  void field(const char* key, double& value, const char*, Range range) override {
    if (const ConfigNode* node = scalar(key, "a number")) read_double(*node, key, value, range);
  }
  void field(const char* key, std::string& value, const char*) override {
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
  void field(const char* key, std::vector<int64_t>& value, const char*, Range each) override {
    read_list(key, value, "a whole number",
              [&](const ConfigNode& node, const std::string& name, int64_t& out) {
                read_int(node, name, out, each);
              });
  }
  void field(const char* key, std::vector<double>& value, const char*, Range each) override {
    read_list(key, value, "a number",
              [&](const ConfigNode& node, const std::string& name, double& out) {
                read_double(node, name, out, each);
              });
  }
  void field(const char* key, std::vector<std::string>& value, const char*) override {
    read_list(key, value, "text", [](const ConfigNode& node, const std::string&, std::string& out) {
      out = node.scalar;
    });
  }
  void required(const char* key) override {
    Frame& frame = frames_.back();
    if (frame.node && frame.node->kind == Kind::kMap && !frame.node->find(key)) {
      issue(*frame.node, key, "is required here");
    }
  }

 protected:
  void enum_field(const char* key, const std::vector<std::string>& names, int& index,
                  const char*) override {
    const ConfigNode* node = scalar(key, join(names, ", "));
    if (!node) return;
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == node->scalar) {
        index = static_cast<int>(i);
        return;
      }
    }
    const std::string near = closest(node->scalar, names);
    issue(*node, key,
          cat("expected one of ", join(names, ", "), "; got '", node->scalar, "'",
              near.empty() ? "" : cat("; did you mean '", near, "'?")));
  }
  void begin_section(const char* key, const char*) override {
    const ConfigNode* node = take(key);
    if (node && node->kind == Kind::kNull) node = nullptr;
    if (node && node->kind != Kind::kMap) {
      issue(*node, key, cat("expected a mapping, got ", node->kind_name()));
      node = nullptr;
    }
    frames_.push_back({node, path(key), {}, {}});
  }
  void end_section() override {
    report_unknown();
    frames_.pop_back();
  }
  size_t begin_list(const char* key, size_t, const char*) override {
    const ConfigNode* node = take(key);
    list_ = nullptr;
    list_path_ = path(key);
    if (node && node->kind == Kind::kSequence) {
      list_ = node;
      return node->sequence.size();
    }
    if (node && node->kind != Kind::kNull) {
      issue(*node, key, cat("expected a list, got ", node->kind_name()));
    }
    return 0;
  }
  void begin_item(size_t index) override {
    const ConfigNode* node = &list_->sequence[index];
    const std::string name = cat(list_path_, "[", index, "]");
    origins_[name] = node->where;
    if (node->kind != Kind::kMap) {
      issues_.push_back({node->where, name, cat("expected a mapping, got ", node->kind_name())});
      node = nullptr;
    }
    stack_.push_back({list_, list_path_});
    frames_.push_back({node, name, {}, {}});
  }
  void end_item() override {
    report_unknown();
    frames_.pop_back();
    list_ = stack_.back().first;
    list_path_ = stack_.back().second;
    stack_.pop_back();
  }
  void end_list() override {}

 private:
  struct Frame {
    const ConfigNode* node;  // the mapping being read, or null
    std::string path;
    std::set<std::string> seen;
    std::vector<std::string> keys;
  };

  std::string path(const std::string& key) const {
    const std::string& prefix = frames_.back().path;
    return prefix.empty() ? key : prefix + "." + key;
  }
  void issue(const ConfigNode& node, const std::string& key, const std::string& message) {
    issues_.push_back({node.where, path(key), message});
  }

  const ConfigNode* take(const char* key) {
    Frame& frame = frames_.back();
    frame.keys.emplace_back(key);
    if (!frame.node) return nullptr;
    const ConfigNode* node = frame.node->find(key);
    if (node) {
      frame.seen.insert(key);
      origins_[path(key)] = node->where;
    }
    return node;
  }

  // The scalar under `key`, or null (with an issue when something else is there).
  const ConfigNode* scalar(const char* key, const std::string& expected) {
    const ConfigNode* node = take(key);
    if (!node || node->kind == Kind::kScalar) return node;
    issue(*node, key, cat("expected ", expected, ", got ", node->kind_name()));
    return nullptr;
  }

  void read_int(const ConfigNode& node, const std::string& key, int64_t& value,
                const Range& range) {
    const std::string& text = node.scalar;
    int64_t number = 0;
    const char* begin = text.data() + (text.size() > 1 && text[0] == '+' ? 1 : 0);
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(begin, end, number);
    const bool leading_zero = text.size() > 1 && text[text[0] == '-' ? 1 : 0] == '0';
    if (node.quoted || error != std::errc() || rest != end || (leading_zero && text != "-0")) {
      issue(node, key, cat("expected a whole number, got '", text, "'"));
      return;
    }
    if (check_range(node, key, double(number), range)) value = number;
  }

  void read_double(const ConfigNode& node, const std::string& key, double& value,
                   const Range& range) {
    const std::string& text = node.scalar;
    double number = 0;
    const char* begin = text.data() + (text.size() > 1 && text[0] == '+' ? 1 : 0);
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(begin, end, number);
    if (node.quoted || error != std::errc() || rest != end || !std::isfinite(number)) {
      issue(node, key, cat("expected a number, got '", text, "'"));
      return;
    }
    if (check_range(node, key, number, range)) value = number;
  }

  bool check_range(const ConfigNode& node, const std::string& key, double number,
                   const Range& range) {
    if ((range.min && number < *range.min) || (range.max && number > *range.max)) {
      const std::string limits = range.min && range.max
                                     ? cat("between ", *range.min, " and ", *range.max)
                                 : range.min ? cat("at least ", *range.min)
                                             : cat("at most ", *range.max);
      issue(node, key, cat("must be ", limits, ", got ", node.scalar));
      return false;
    }
    return true;
  }

  template <class T, class Read>
  void read_list(const char* key, std::vector<T>& value, const char* expected, Read read) {
    const ConfigNode* node = take(key);
    if (!node) return;
    if (node->kind != Kind::kSequence) {
      issue(*node, key, cat("expected a list, got ", node->kind_name()));
      return;
    }
    std::vector<T> out(node->sequence.size());
    for (size_t i = 0; i < out.size(); ++i) {
      const ConfigNode& item = node->sequence[i];
      const std::string name = cat(key, "[", i, "]");
      if (item.kind == Kind::kScalar) {
        read(item, name, out[i]);
      } else {
        issue(item, name, cat("expected ", expected, ", got ", item.kind_name()));
      }
    }
    value = std::move(out);
  }

  void report_unknown() {
    const Frame& frame = frames_.back();
    if (!frame.node) return;
    for (const ConfigNode::Entry& entry : frame.node->map) {
      if (frame.seen.count(entry.key)) continue;
      const std::string near = closest(entry.key, frame.keys);
      issues_.push_back(
          {entry.where, path(entry.key),
           cat("unknown key", near.empty() ? "" : cat("; did you mean '", near, "'?"))});
    }
  }

  std::vector<ConfigIssue>& issues_;
  std::map<std::string, Where>& origins_;
  std::vector<Frame> frames_;
  const ConfigNode* list_ = nullptr;
  std::string list_path_;
  std::vector<std::pair<const ConfigNode*, std::string>> stack_;
};

// Every dotted key of a RunConfig, for "did you mean section.key".
class KeyCollector : public FieldVisitor {
 public:
  std::vector<std::string> keys;
  void field(const char* key, bool&, const char*) override { add(key); }
  void field(const char* key, int64_t&, const char*, Range) override { add(key); }
  void field(const char* key, double&, const char*, Range) override { add(key); }
  void field(const char* key, std::string&, const char*) override { add(key); }
  void field(const char* key, std::vector<int64_t>&, const char*, Range) override { add(key); }
  void field(const char* key, std::vector<double>&, const char*, Range) override { add(key); }
  void field(const char* key, std::vector<std::string>&, const char*) override { add(key); }
  void required(const char*) override {}

 protected:
  void enum_field(const char* key, const std::vector<std::string>&, int&, const char*) override {
    add(key);
  }
  void begin_section(const char* key, const char*) override { prefix_.push_back(key); }
  void end_section() override { prefix_.pop_back(); }
  size_t begin_list(const char* key, size_t, const char*) override {
    add(key);
    return 0;
  }
  void begin_item(size_t) override {}
  void end_item() override {}
  void end_list() override {}

 private:
  void add(const char* key) {
    keys.push_back(join(prefix_, ".") + (prefix_.empty() ? "" : ".") + key);
  }
  std::vector<std::string> prefix_;
};

// An unknown key that exists in another section gets that as its suggestion.
void suggest_other_section(std::vector<ConfigIssue>& issues) {
  KeyCollector all;
  RunConfig().describe(all);
  for (ConfigIssue& issue : issues) {
    if (issue.message != "unknown key") continue;
    const std::string leaf = issue.key.substr(issue.key.rfind('.') + 1);
    for (const std::string& key : all.keys) {
      if (key.substr(key.rfind('.') + 1) != leaf) continue;
      issue.message += cat("; it belongs under '", key, "'");
      break;
    }
  }
}

// ---- --set
// ------------------------------------------------------------------------------------------

struct PathStep {
  std::string key;  // or an index when key is empty
  size_t index = 0;
};

std::vector<PathStep> parse_set_path(const std::string& text, const Where& where) {
  std::vector<PathStep> steps;
  for (const std::string& part : split(text, '.')) {
    const size_t bracket = part.find('[');
    const std::string key = part.substr(0, bracket);
    if (key.empty()) throw ConfigError(where.text(), ": expected key=value with a dotted key");
    steps.push_back({key, 0});
    for (size_t at = bracket; at != part.npos && at < part.size();) {
      const size_t close = part.find(']', at);
      size_t index = 0;
      const char* begin = part.data() + at + 1;
      const char* end = part.data() + (close == part.npos ? part.size() : close);
      const auto [rest, error] = std::from_chars(begin, end, index);
      if (part[at] != '[' || close == part.npos || error != std::errc() || rest != end ||
          begin == end) {
        throw ConfigError(where.text(), ": '", part, "' is not key[index]");
      }
      steps.push_back({"", index});
      at = close + 1;
    }
  }
  return steps;
}

void apply_set(ConfigNode& root, const std::string& argument) {
  const Where where{"--set " + argument, 0, 0};
  const size_t equals = argument.find('=');
  if (equals == argument.npos || equals == 0) {
    throw ConfigError(where.text(), ": expected key=value");
  }
  ConfigNode* node = &root;
  for (const PathStep& step : parse_set_path(argument.substr(0, equals), where)) {
    if (step.key.empty()) {
      if (node->kind != Kind::kSequence || step.index >= node->sequence.size()) {
        throw ConfigError(where.text(), ": there is no item [", step.index, "]; the list has ",
                          node->sequence.size(), " items");
      }
      node = &node->sequence[step.index];
      continue;
    }
    if (node->kind == Kind::kNull) node->kind = Kind::kMap;
    if (node->kind != Kind::kMap) {
      throw ConfigError(where.text(), ": '", step.key, "' is asked of ", node->kind_name());
    }
    if (!node->find(step.key)) node->map.push_back({step.key, where, ConfigNode{}});
    node = node->find(step.key);
  }
  *node = parse_yaml_value(argument.substr(equals + 1), where);
}

ResolvedConfig resolve_tree(const ConfigNode& tree, const std::string& source) {
  ResolvedConfig out;
  out.source = source;
  std::vector<ConfigIssue> issues;
  ReadVisitor visitor(tree, issues, out.origins);
  out.config.describe(visitor);
  visitor.finish();
  suggest_other_section(issues);
  for (const ConfigProblem& problem : resolve_and_check(out.config)) {
    issues.push_back({out.where(problem.key), problem.key, problem.message});
  }
  if (!issues.empty()) throw_issues(std::move(issues));
  return out;
}

}  // namespace

Where ResolvedConfig::where(const std::string& key) const {
  for (std::string at = key; !at.empty();) {
    const auto it = origins.find(at);
    if (it != origins.end()) return it->second;
    const size_t cut = at.find_last_of(".[");
    at = cut == at.npos ? "" : at.substr(0, cut);
  }
  return {source, 1, 1};
}

void throw_problems(const ResolvedConfig& resolved, const std::vector<ConfigProblem>& problems) {
  std::vector<ConfigIssue> issues;
  for (const ConfigProblem& problem : problems) {
    issues.push_back({resolved.where(problem.key), problem.key, problem.message});
  }
  throw_issues(std::move(issues));
}

std::vector<ResolvedConfig> read_run_configs(const std::string& path,
                                             const std::vector<std::string>& sets) {
  ConfigNode common = load_config_tree(path);
  std::vector<ConfigNode> items(1);
  items[0].kind = Kind::kMap;
  if (const ConfigNode* stages = common.find("stages")) {
    if (stages->kind != Kind::kSequence || stages->sequence.empty()) {
      throw ConfigError(stages->where.text(), ": stages: expected a list of configs, got ",
                        stages->sequence.empty() && stages->kind == Kind::kSequence
                            ? "an empty one"
                            : stages->kind_name());
    }
    items = stages->sequence;
    std::erase_if(common.map, [](const ConfigNode::Entry& e) { return e.key == "stages"; });
  }
  std::vector<ResolvedConfig> out;
  for (const ConfigNode& item : items) {
    if (item.kind != Kind::kMap) {
      throw ConfigError(item.where.text(), ": stages: expected a mapping, got ", item.kind_name());
    }
    ConfigNode tree = merge(common, apply_extends(item, path));
    for (const std::string& set : sets) apply_set(tree, set);
    out.push_back(resolve_tree(tree, path));
  }
  return out;
}

ResolvedConfig read_run_config(const std::string& path, const std::vector<std::string>& sets) {
  std::vector<ResolvedConfig> all = read_run_configs(path, sets);
  if (all.size() != 1) {
    throw ConfigError(path, ": holds ", all.size(), " stages; this command takes a config of one");
  }
  return std::move(all.front());
}

ResolvedConfig parse_run_config(const std::string& yaml, const std::string& source) {
  return resolve_tree(parse_yaml(yaml, source), source);
}

}  // namespace mgm
