#include "config/reader.h"

#include <algorithm>
#include <optional>
#include <set>

#include "base/error.h"
#include "config/flatten.h"
#include "config/load_tree.h"
#include "config/override.h"
#include "config/read_visitor.h"
#include "config/yaml_load.h"

namespace mgm {
namespace {

using Kind = ConfigNode::Kind;

// Sections whose values are checked against each other: geometry and length tie model, image and
// text together.
std::string group_of(const std::string& key) {
  const std::string top = key.substr(0, key.find_first_of(".["));
  return top == "image" || top == "text" ? "model" : top;
}

// A named hr_encoder brings its sizes. A size that is written down and differs is an error, and one
// that is not gets its cause as origin.
void check_implied(const RunConfig& written, ResolvedConfig& out,
                   std::vector<ConfigIssue>& issues) {
  const std::vector<FlatField> before = flatten(written), after = flatten(out.config);
  for (size_t i = 0; i < after.size(); ++i) {
    const std::string& key = after[i].key;
    if (before[i].value == after[i].value) continue;
    if (out.origins.count(key)) {
      issues.push_back({out.where(key), key,
                        cat("is ", before[i].value, ", but the named model.hr_encoder has ",
                            after[i].value, "; leave it out, or use hr_encoder: convnext")});
    } else {
      out.origins[key] = {"model.hr_encoder", 0, 0};
    }
  }
}

// `complete`: every file and --set that should be part of the tree is.
ResolvedConfig resolve_tree(const ConfigNode& tree, const std::string& source, bool complete,
                            std::vector<ConfigIssue>& issues) {
  ResolvedConfig out;
  out.source = source;
  ReadVisitor visitor(tree, issues, out.origins);
  out.config.describe(visitor);
  visitor.finish();
  const RunConfig written = out.config;
  const std::vector<ConfigProblem> problems = resolve_and_check(out.config);
  if (!visitor.unusable().count("model.hr_encoder")) check_implied(written, out, issues);
  if (!complete) return out;
  // A value that could not be used left its default behind; rules that look at it would complain
  // about something nobody wrote.
  std::set<std::string> doubtful;
  for (const std::string& key : visitor.unusable()) doubtful.insert(group_of(key));
  for (const ConfigProblem& problem : problems) {
    if (doubtful.count(group_of(problem.key))) continue;
    issues.push_back({out.where(problem.key), problem.key, problem.message});
  }
  return out;
}

// The items of `stages`, taken out of `root`; one empty mapping for a plain file.
std::vector<ConfigNode> take_stages(ConfigNode& root, std::vector<ConfigIssue>& issues) {
  const ConfigNode* stages = root.find("stages");
  if (!stages) {
    ConfigNode none;
    none.kind = Kind::kMap;
    none.where = root.where;
    return {none};
  }
  std::vector<ConfigNode> items;
  if (stages->kind != Kind::kSequence || stages->sequence.empty()) {
    issues.push_back({stages->where, "stages",
                      cat("expected a list of configs, got ",
                          stages->kind == Kind::kSequence ? "an empty one" : stages->kind_name())});
  }
  for (size_t i = 0; i < stages->sequence.size(); ++i) {
    const ConfigNode& item = stages->sequence[i];
    if (item.kind == Kind::kMap) {
      items.push_back(item);
    } else {
      issues.push_back(
          {item.where, cat("stages[", i, "]"), cat("expected a mapping, got ", item.kind_name())});
    }
  }
  std::erase_if(root.map, [](const ConfigNode::Entry& entry) { return entry.key == "stages"; });
  return items;
}

// Two stages in one run folder would overwrite each other.
void check_run_dirs(const std::vector<ResolvedConfig>& stages, std::vector<ConfigIssue>& issues) {
  for (size_t i = 0; i < stages.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const std::string& dir = stages[i].config.run.dir;
      if (dir.empty() || dir != stages[j].config.run.dir) continue;
      issues.push_back({stages[i].where("run.dir"), "run.dir",
                        cat("stages[", j, "] and stages[", i, "] share '", shown(dir),
                            "'; give each its own folder")});
    }
  }
}

bool is_stage_set(const std::string& set) { return set.rfind("stages[", 0) == 0; }

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
  std::vector<ConfigIssue> issues;
  TreeLoader loader(issues);
  std::optional<ConfigNode> own = loader.read(path);
  if (!own) throw_issues(std::move(issues));
  bool sets_applied = true;
  for (const std::string& set : sets) {
    if (is_stage_set(set)) sets_applied = apply_set(*own, set, issues) && sets_applied;
  }
  std::vector<ConfigNode> items = take_stages(*own, issues);
  // Parents, those of the stage included, are weaker than what the file itself says.
  const ConfigNode parents = loader.take_parents(*own);
  std::vector<ResolvedConfig> out;
  for (ConfigNode& item : items) {
    ConfigNode tree = merge(parents, loader.take_parents(item));
    tree = merge(merge(std::move(tree), *own), item);
    for (const std::string& set : sets) {
      if (!is_stage_set(set)) sets_applied = apply_set(tree, set, issues) && sets_applied;
    }
    out.push_back(resolve_tree(tree, path, loader.complete() && sets_applied, issues));
  }
  check_run_dirs(out, issues);
  if (!issues.empty()) throw_issues(std::move(issues));
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
  std::vector<ConfigIssue> issues;
  const std::optional<ConfigNode> tree = parse_yaml(yaml, source, issues);
  ResolvedConfig out;
  if (tree) out = resolve_tree(*tree, source, /*complete=*/true, issues);
  if (!issues.empty()) throw_issues(std::move(issues));
  return out;
}

}  // namespace mgm
