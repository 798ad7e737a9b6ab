#include "config/override.h"

#include <charconv>
#include <optional>

#include "base/strings.h"
#include "config/yaml_load.h"

namespace mgm {
namespace {

using Kind = ConfigNode::Kind;

struct Step {
  std::string key;  // empty: `index` counts
  size_t index = 0;
};

// "rules[0]" -> key and indices; nothing when it is not of that form.
std::optional<std::vector<Step>> parse_part(const std::string& part) {
  const size_t bracket = std::min(part.find('['), part.size());
  if (bracket == 0) return std::nullopt;
  std::vector<Step> steps = {{part.substr(0, bracket), 0}};
  for (size_t at = bracket; at < part.size();) {
    const size_t close = part.find(']', at);
    if (part[at] != '[' || close == part.npos) return std::nullopt;
    Step step;
    const char* end = part.data() + close;
    const auto [rest, error] = std::from_chars(part.data() + at + 1, end, step.index);
    if (error != std::errc() || rest != end) return std::nullopt;
    steps.push_back(step);
    at = close + 1;
  }
  return steps;
}

class Override {
 public:
  Override(const std::string& argument, std::vector<ConfigIssue>& issues)
      : where_{"--set " + shown(argument), 0, 0}, issues_(issues) {}

  void apply(ConfigNode& root, const std::string& argument) {
    const size_t equals = argument.find('=');
    if (equals == argument.npos || equals == 0) {
      return issue("", "expected key=value, for example train.seed=1");
    }
    const std::optional<std::vector<Step>> path = parse_path(argument.substr(0, equals));
    if (!path) return;
    const std::optional<ConfigNode> value =
        parse_yaml_value(argument.substr(equals + 1), where_, issues_);
    if (!value) return;
    ConfigNode copy = root;
    ConfigNode* target = find_target(copy, *path);
    if (!target) return;
    if (value->kind == Kind::kNull && target->kind == Kind::kMap) {
      return issue(argument.substr(0, equals), "is a mapping; set one of the keys below it");
    }
    *target = merge(std::move(*target), *value);
    root = std::move(copy);
  }

 private:
  void issue(const std::string& key, const std::string& message) {
    issues_.push_back({where_, key, message});
  }

  std::optional<std::vector<Step>> parse_path(const std::string& text) {
    std::vector<Step> path;
    for (const std::string& part : split(text, '.')) {
      const std::optional<std::vector<Step>> steps = parse_part(part);
      if (!steps) {
        issue("", cat("'", shown(text), "' is no key such as train.seed or train.rules[0].match"));
        return std::nullopt;
      }
      path.insert(path.end(), steps->begin(), steps->end());
    }
    if (path.size() > kMaxConfigDepth) {
      issue("", cat("the key is deeper than ", kMaxConfigDepth, " levels"));
      return std::nullopt;
    }
    return path;
  }

  // The node that `path` names; keys that are not there yet are made.
  ConfigNode* find_target(ConfigNode& root, const std::vector<Step>& path) {
    ConfigNode* node = &root;
    std::string so_far;
    for (const Step& step : path) {
      if (step.key.empty()) {
        if (node->kind != Kind::kSequence || step.index >= node->sequence.size()) {
          issue(so_far, cat("has no item [", step.index, "]: the files give it ",
                            node->kind == Kind::kSequence ? cat(node->sequence.size(), " items")
                                                          : node->kind_name(),
                            "; set the whole list, ", so_far, "=[...]"));
          return nullptr;
        }
        node = &node->sequence[step.index];
        so_far += cat("[", step.index, "]");
        continue;
      }
      if (node->kind == Kind::kNull) node->kind = Kind::kMap;
      if (node->kind != Kind::kMap) {
        issue(so_far, cat("is ", node->kind_name(), " and has no key '", shown(step.key), "'"));
        return nullptr;
      }
      if (!node->find(step.key)) {
        ConfigNode empty;
        empty.where = where_;
        node->map.push_back({step.key, where_, std::move(empty)});
      }
      node = node->find(step.key);
      so_far += (so_far.empty() ? "" : ".") + shown(step.key);
    }
    return node;
  }

  Where where_;
  std::vector<ConfigIssue>& issues_;
};

}  // namespace

bool apply_set(ConfigNode& root, const std::string& argument, std::vector<ConfigIssue>& issues) {
  const size_t before = issues.size();
  Override(argument, issues).apply(root, argument);
  return issues.size() == before;
}

}  // namespace mgm
