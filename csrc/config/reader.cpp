#include "config/reader.h"

#include <algorithm>
#include <optional>
#include <set>
#include <tuple>

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

// Whether one is the other or lies below it: "train" and "train.rules[0].match".
bool overlap(const std::string& a, const std::string& b) {
  const auto [outer, inner] = a.size() < b.size() ? std::tie(a, b) : std::tie(b, a);
  return inner.compare(0, outer.size(), outer) == 0 &&
         (inner.size() == outer.size() || inner[outer.size()] == '.' || inner[outer.size()] == '[');
}

// Whether a rule has looked at a value that could not be used. Its default was left behind, and the
// rule would complain about something nobody wrote.
bool is_doubtful(const ConfigProblem& problem, const std::set<std::string>& unusable) {
  return std::any_of(unusable.begin(), unusable.end(), [&](const std::string& key) {
    if (problem.reads.empty()) return group_of(problem.key) == group_of(key);
    return std::any_of(problem.reads.begin(), problem.reads.end(),
                       [&](const std::string& read) { return overlap(read, key); });
  });
}

// Who brings values that nobody wrote, and what to do about a written one that differs.
struct Cause {
  const char* key;
  std::string has, way_out;
};

// Where the problem's key was written; if it was not, where the first of the keys was that the rule
// reads: the key's section may come from a --set of another key.
Where place_of(const ResolvedConfig& resolved, const ConfigProblem& problem) {
  const auto is_written = [&](const std::string& key) { return resolved.origins.count(key) > 0; };
  if (is_written(problem.key)) return resolved.where(problem.key);
  const auto it = std::find_if(problem.reads.begin(), problem.reads.end(), is_written);
  return resolved.where(it != problem.reads.end() ? *it : problem.key);
}

// Values by key, those of a list under the list's own key.
std::map<std::string, std::string> values_of(const RunConfig& config) {
  std::map<std::string, std::string> out;
  for (const FlatField& field : flatten(config)) {
    const bool item = field.key.back() == ']';
    std::string& value = out[item ? field.key.substr(0, field.key.rfind('[')) : field.key];
    value += (value.empty() ? "" : ", ") + field.value;
  }
  return out;
}

// A value that differs from before has `cause` as its origin; if it was written down, that is an
// error.
void check_implied(const RunConfig& written, const Cause& cause, ResolvedConfig& out,
                   std::vector<ConfigIssue>& issues) {
  const std::map<std::string, std::string> before = values_of(written);
  for (const auto& [key, value] : values_of(out.config)) {
    const auto it = before.find(key);
    if (it != before.end() && it->second == value) continue;
    if (out.origins.count(key) || out.origins.count(key + "[0]")) {
      issues.push_back({out.where(key), key,
                        cat("is ", it->second, ", but ", cause.has, " ", value,
                            "; leave it out, or ", cause.way_out)});
    } else {
      out.origins[key] = {cause.key, 0, 0};
    }
  }
}

void read_backbone(const BackboneReader& read, ResolvedConfig& out,
                   std::vector<ConfigIssue>& issues) {
  LlmConfig& llm = out.config.model.llm;
  const RunConfig written = out.config;
  const std::string path = out.config.model.path.empty() ? "model.llm.path" : "model.path";
  try {
    read(out.config.model);
  } catch (const Error& error) {
    out.config.model.llm = written.model.llm;
    issues.push_back({out.where(path), path, error.what()});
    return;
  }
  const auto is_written = [&](const char* key) { return out.origins.count(key) > 0; };
  if (is_written("model.llm.activation")) llm.activation = written.model.llm.activation;
  if (is_written("model.llm.router_aux_loss")) {
    llm.router_aux_loss = written.model.llm.router_aux_loss;
  }
  out.origins.erase("model.llm.arch");  // "auto" is no longer what it says
  check_implied(
      written,
      {path.c_str(), cat("the config of ", path, " has"), "name the arch and write all sizes"}, out,
      issues);
}

// `complete`: every file and --set that should be part of the tree is.
ResolvedConfig resolve_tree(const ConfigNode& tree, const std::string& source, bool complete,
                            const BackboneReader& backbone, std::vector<ConfigIssue>& issues) {
  ResolvedConfig out;
  out.source = source;
  ReadVisitor visitor(tree, issues, out.origins);
  out.config.describe(visitor);
  visitor.finish();
  const std::set<std::string> unusable = visitor.unusable();
  const bool asked = out.config.model.llm.arch == LlmArch::kAuto && backbone && complete;
  if (asked && !unusable.count("model.path") && !unusable.count("model.llm.path")) {
    read_backbone(backbone, out, issues);
  }
  const RunConfig written = out.config;
  const std::vector<ConfigProblem> problems = resolve_and_check(out.config);
  if (!unusable.count("model.hr_encoder")) {
    check_implied(
        written, {"model.hr_encoder", "the named model.hr_encoder has", "use hr_encoder: convnext"},
        out, issues);
  }
  if (!complete) return out;
  for (const ConfigProblem& problem : problems) {
    if (is_doubtful(problem, unusable)) continue;
    issues.push_back({place_of(out, problem), problem.key, problem.message});
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
    issues.push_back({place_of(resolved, problem), problem.key, problem.message});
  }
  throw_issues(std::move(issues));
}

std::vector<ResolvedConfig> read_run_configs(const std::string& path,
                                             const std::vector<std::string>& sets,
                                             const BackboneReader& backbone) {
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
    out.push_back(resolve_tree(tree, path, loader.complete() && sets_applied, backbone, issues));
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
  if (tree) out = resolve_tree(*tree, source, /*complete=*/true, {}, issues);
  if (!issues.empty()) throw_issues(std::move(issues));
  return out;
}

}  // namespace mgm
