#include "config/load_tree.h"

#include <algorithm>

#include "base/embedded.h"
#include "base/error.h"
#include "base/fs.h"
#include "config/yaml_load.h"

namespace mgm {
namespace {

using Kind = ConfigNode::Kind;
constexpr int kMaxLoaded = 256;  // parents of parents can multiply

std::optional<ConfigNode> take(ConfigNode& node, const std::string& key) {
  const auto it = std::find_if(node.map.begin(), node.map.end(),
                               [&](const ConfigNode::Entry& entry) { return entry.key == key; });
  if (it == node.map.end()) return std::nullopt;
  ConfigNode value = std::move(it->value);
  node.map.erase(it);
  return value;
}

// What read_file said, without the path in front.
std::string reason(const DataError& error, const std::string& path) {
  const std::string text = error.what();
  return text.rfind(path + ": ", 0) == 0 ? text.substr(path.size() + 2) : text;
}

}  // namespace

std::optional<TreeLoader::Source> TreeLoader::find_embedded(const std::string& name) {
  for (const EmbeddedFile& file : embedded_files()) {
    if (file.name != name && file.name != name + ".yaml") continue;
    const std::string shown = cat("built-in ", file.name);
    return Source{shown, shown, "", std::string(file.text)};
  }
  return std::nullopt;
}

TreeLoader::Source TreeLoader::read_source(const std::string& path) {
  std::error_code ignored;
  const fs::path canonical = fs::weakly_canonical(path, ignored);
  return {path, canonical.empty() ? path : canonical.string(), path, read_file(path)};
}

std::optional<ConfigNode> TreeLoader::read(const std::string& path) {
  std::error_code ignored;
  try {
    if (fs::is_directory(path, ignored)) {
      issues_.push_back({{path}, "", "is a folder; expected a YAML file"});
      return std::nullopt;
    }
    if (fs::exists(path, ignored)) {
      root_ = read_source(path);
    } else if (std::optional<Source> embedded = find_embedded(path)) {
      root_ = *std::move(embedded);
    } else {
      issues_.push_back({{path}, "", "no such file and no built-in preset of that name"});
      return std::nullopt;
    }
  } catch (const DataError& e) {  // unreadable
    issues_.push_back({{path}, "", reason(e, path)});
    return std::nullopt;
  }
  return parse_yaml(root_.text, root_.shown, issues_);
}

std::optional<TreeLoader::Source> TreeLoader::find_parent(const ConfigNode& name,
                                                          const std::string& including_file) {
  std::error_code ignored;
  if (!including_file.empty()) {
    const fs::path base = fs::path(including_file).parent_path();
    for (const fs::path& candidate : {base / name.scalar, base / (name.scalar + ".yaml")}) {
      if (!fs::is_regular_file(candidate, ignored)) continue;
      try {
        return read_source(candidate.lexically_normal().string());
      } catch (const DataError& e) {
        issues_.push_back({name.where, "extends", e.what()});
        return std::nullopt;
      }
    }
  }
  if (std::optional<Source> embedded = find_embedded(name.scalar)) return embedded;
  std::vector<std::string> known;
  for (const EmbeddedFile& file : embedded_files()) {
    const std::string preset(file.name);
    if (preset.rfind("base/", 0) == 0) known.push_back(preset.substr(0, preset.size() - 5));
  }
  const std::string near = name.scalar.size() < 80 ? closest(name.scalar, known) : "";
  issues_.push_back({name.where, "extends",
                     cat("no file '", shown(name.scalar),
                         including_file.empty() ? "'" : cat("' beside ", including_file),
                         " and no built-in preset of that name",
                         near.empty() ? cat("; presets: ", join(known, ", "))
                                      : cat("; did you mean '", near, "'?"))});
  return std::nullopt;
}

ConfigNode TreeLoader::take_parents(ConfigNode& node) { return take_parents(node, {root_}); }

ConfigNode TreeLoader::take_parents(ConfigNode& node, const std::vector<Source>& chain) {
  ConfigNode base;
  base.kind = Kind::kMap;
  base.where = node.where;
  const std::optional<ConfigNode> extends = take(node, "extends");
  if (!extends) return base;
  std::vector<ConfigNode> names = extends->sequence;
  if (extends->kind != Kind::kSequence) names.push_back(*extends);
  for (const ConfigNode& name : names) {
    const std::optional<ConfigNode> parent = load_parent(name, chain);
    if (parent) {
      base = merge(std::move(base), *parent);
    } else {
      complete_ = false;
    }
  }
  return base;
}

// The parent with its own parents below it; nothing (and an issue) when it cannot be had.
std::optional<ConfigNode> TreeLoader::load_parent(const ConfigNode& name,
                                                  const std::vector<Source>& chain) {
  const auto issue = [&](const std::string& message) {
    issues_.push_back({name.where, "extends", message});
    return std::nullopt;
  };
  if (name.reported) return std::nullopt;
  if (name.kind != Kind::kScalar || name.scalar.empty()) {
    return issue(cat("expected a name or a list of names, got ", name.kind_name()));
  }
  std::optional<Source> parent = find_parent(name, chain.back().file);
  if (!parent) return std::nullopt;
  std::vector<std::string> names;
  bool cycle = false;
  for (const Source& source : chain) {
    names.push_back(source.shown);
    cycle = cycle || source.identity == parent->identity;
  }
  names.push_back(parent->shown);
  if (cycle) return issue(cat("cycle: ", join(names, " -> ")));
  if (++loaded_ > kMaxLoaded) return issue(cat("more than ", kMaxLoaded, " parents in all"));
  if (chain.size() > kMaxConfigDepth) {
    return issue(cat("more than ", kMaxConfigDepth, " parents in a row"));
  }
  std::optional<ConfigNode> tree = parse_yaml(parent->text, parent->shown, issues_);
  if (!tree) return std::nullopt;
  if (const std::optional<ConfigNode> stages = take(*tree, "stages")) {
    issues_.push_back({stages->where, "stages",
                       cat("a file with stages cannot be a parent (", name.where.text(), ")")});
  }
  std::vector<Source> longer = chain;
  parent->text.clear();
  longer.push_back(*std::move(parent));
  ConfigNode parents = take_parents(*tree, longer);
  return merge(std::move(parents), *tree);
}

}  // namespace mgm
