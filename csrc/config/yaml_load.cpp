#include "config/yaml_load.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "base/embedded.h"
#include "base/error.h"

namespace mgm {
namespace {

constexpr int kMaxDepth = 32;                  // of nesting
constexpr size_t kMaxBytes = size_t{4} << 20;  // of one file
constexpr size_t kMaxChain = 32;               // of `extends`

// Builds the tree from parser events: aliases are refused before anything could be expanded.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::string source) : source_(std::move(source)) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) fail(mark, "a config is one YAML document; found a second one");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    add(leaf(mark, ConfigNode::Kind::kNull), mark);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(mark, "aliases (*name) are not supported; write the value out, or use extends");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    ConfigNode node = leaf(mark, ConfigNode::Kind::kScalar);
    node.scalar = value;
    node.quoted = tag == "!";  // yaml-cpp marks quoted scalars with the non-specific tag
    if (!node.quoted && (value == "~" || value == "null" || value == "Null" || value == "NULL")) {
      node.kind = ConfigNode::Kind::kNull;
    }
    add(std::move(node), mark);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    begin(mark, tag, anchor, ConfigNode::Kind::kSequence);
  }
  void OnSequenceEnd() override { end(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    begin(mark, tag, anchor, ConfigNode::Kind::kMap);
  }
  void OnMapEnd() override { end(); }

  ConfigNode take() { return std::move(root_); }

 private:
  struct Open {
    ConfigNode node;
    bool has_key = false;
    std::string key;
    Where key_where;
    std::set<std::string> keys;
  };

  Where at(const YAML::Mark& mark) const { return {source_, mark.line + 1, mark.column + 1}; }
  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& message) const {
    throw ConfigError(at(mark).text(), ": ", message);
  }
  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) const {
    if (anchor != 0) fail(mark, "anchors (&name) are not supported; use extends to share settings");
  }
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (!tag.empty() && tag != "?" && tag != "!") fail(mark, cat("tag ", tag, " is not supported"));
  }
  ConfigNode leaf(const YAML::Mark& mark, ConfigNode::Kind kind) const {
    ConfigNode node;
    node.kind = kind;
    node.where = at(mark);
    return node;
  }

  void begin(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
             ConfigNode::Kind kind) {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    if (open_.size() >= kMaxDepth) fail(mark, cat("nested deeper than ", kMaxDepth, " levels"));
    if (!open_.empty() && open_.back().node.kind == ConfigNode::Kind::kMap &&
        !open_.back().has_key) {
      fail(mark, "a key must be plain text");
    }
    Open item;
    item.node = leaf(mark, kind);
    open_.push_back(std::move(item));
  }

  void end() {
    ConfigNode node = std::move(open_.back().node);
    open_.pop_back();
    add(std::move(node), YAML::Mark::null_mark());
  }

  void add(ConfigNode node, const YAML::Mark& mark) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == ConfigNode::Kind::kSequence) {
      parent.node.sequence.push_back(std::move(node));
    } else if (parent.has_key) {
      parent.node.map.push_back({parent.key, parent.key_where, std::move(node)});
      parent.has_key = false;
    } else {
      if (node.kind != ConfigNode::Kind::kScalar) fail(mark, "a key must be plain text");
      if (node.scalar == "<<") {
        fail(mark, "merge keys (<<) are not supported; use extends to share settings");
      }
      if (!parent.keys.insert(node.scalar).second) {
        fail(mark, cat("'", node.scalar, "' is set twice in this mapping"));
      }
      parent.key = node.scalar;
      parent.key_where = node.where;
      parent.has_key = true;
    }
  }

  std::string source_;
  int documents_ = 0;
  std::vector<Open> open_;
  ConfigNode root_;
};

// yaml-cpp's parser recurses per nesting level of flow collections; refuse what could exhaust the
// stack before it starts.
void check_size_and_nesting(std::string_view text, const std::string& source) {
  if (text.size() > kMaxBytes) {
    throw ConfigError(source, ": ", text.size(), " bytes is no config (limit ", kMaxBytes, ")");
  }
  int line = 1, depth = 0, indicators = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') {
      ++line;
      indicators = 0;
    }
    depth += c == '[' || c == '{' ? 1 : c == ']' || c == '}' ? -1 : 0;
    // "- - - -" and "? ? ?" nest block collections on one line
    const bool nests =
        (c == '-' || c == '?' || c == ':') && (i + 1 == text.size() || text[i + 1] == ' ');
    indicators += nests ? 1 : 0;
    if (depth > 8 * kMaxDepth || indicators > 8 * kMaxDepth) {
      throw ConfigError(source, ":", line, ":1: nested too deeply for a config");
    }
    if (c == '\0') throw ConfigError(source, ":", line, ":1: contains a NUL byte");
  }
}

ConfigNode parse(std::string_view text, const std::string& source) {
  check_size_and_nesting(text, source);
  std::istringstream in{std::string(text)};
  TreeBuilder builder(source);
  try {
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& e) {
    throw ConfigError(Where{source, e.mark.line + 1, e.mark.column + 1}.text(),
                      ": not valid YAML: ", e.msg);
  }
  return builder.take();
}

// ---- extends
// --------------------------------------------------------------------------------------

struct Source {
  std::string name;  // file path, or "base/x.yaml (built in)"
  std::string text;
  std::string file;  // path that relative parents are looked up from; empty for embedded ones
};

const EmbeddedFile* find_embedded(const std::string& name) {
  for (const EmbeddedFile& file : embedded_files()) {
    if (file.name == name || file.name == name + ".yaml") return &file;
  }
  return nullptr;
}

Source find_parent(const std::string& name, const Where& where, const std::string& including_file) {
  std::error_code ignored;
  if (!including_file.empty()) {
    const fs::path base = fs::path(including_file).parent_path();
    for (const fs::path& candidate : {base / name, base / (name + ".yaml")}) {
      if (fs::is_regular_file(candidate, ignored)) {
        const std::string path = candidate.lexically_normal().string();
        return {path, read_file(path), path};
      }
    }
  }
  if (const EmbeddedFile* file = find_embedded(name)) {
    return {std::string(file->name), std::string(file->text), ""};
  }
  std::vector<std::string> known;
  for (const EmbeddedFile& file : embedded_files()) {
    known.emplace_back(file.name.substr(0, file.name.size() - 5));
  }
  const std::string near = closest(name, known);
  throw ConfigError(where.text(), ": extends: no file and no built-in preset '", name, "'",
                    near.empty() ? "" : cat("; did you mean '", near, "'?"));
}

ConfigNode resolve(ConfigNode node, const std::string& file, std::vector<std::string> chain);

ConfigNode load_source(const Source& source, std::vector<std::string> chain, const Where& where) {
  if (std::find(chain.begin(), chain.end(), source.name) != chain.end() ||
      chain.size() > kMaxChain) {
    chain.push_back(source.name);
    throw ConfigError(where.text(), ": extends: cycle: ", join(chain, " -> "));
  }
  chain.push_back(source.name);
  return resolve(parse_yaml(source.text, source.name), source.file, chain);
}

// Replaces `extends` of a map by what it names.
ConfigNode resolve(ConfigNode node, const std::string& file, std::vector<std::string> chain) {
  const auto it = std::find_if(node.map.begin(), node.map.end(),
                               [](const ConfigNode::Entry& e) { return e.key == "extends"; });
  if (it == node.map.end()) return node;
  const ConfigNode extends = it->value;
  node.map.erase(it);
  std::vector<ConfigNode> names;
  if (extends.kind == ConfigNode::Kind::kSequence) {
    names = extends.sequence;
  } else {
    names.push_back(extends);
  }
  ConfigNode base;
  base.kind = ConfigNode::Kind::kMap;
  for (const ConfigNode& name : names) {
    if (name.kind != ConfigNode::Kind::kScalar) {
      throw ConfigError(extends.where.text(), ": extends: expected a name or a list of names, got ",
                        name.kind_name());
    }
    base = merge(std::move(base),
                 load_source(find_parent(name.scalar, name.where, file), chain, name.where));
  }
  return merge(std::move(base), node);
}

}  // namespace

ConfigNode parse_yaml(std::string_view text, const std::string& source) {
  ConfigNode root = parse(text, source);
  if (root.kind == ConfigNode::Kind::kNull) {
    root.kind = ConfigNode::Kind::kMap;
    root.where = {source, 1, 1};
  }
  if (root.kind != ConfigNode::Kind::kMap) {
    throw ConfigError(root.where.text(), ": a config is a mapping of keys, got ", root.kind_name());
  }
  return root;
}

namespace {

void place(ConfigNode& node, const Where& where) {
  node.where = where;
  for (ConfigNode& item : node.sequence) place(item, where);
  for (ConfigNode::Entry& entry : node.map) {
    entry.where = where;
    place(entry.value, where);
  }
}

}  // namespace

ConfigNode parse_yaml_value(std::string_view text, const Where& where) {
  ConfigNode node = parse(text, where.text());
  place(node, where);
  return node;
}

ConfigNode load_config_tree(const std::string& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    if (const EmbeddedFile* file = find_embedded(path)) {
      return load_source({std::string(file->name), std::string(file->text), ""}, {}, {});
    }
    throw ConfigError(path, ": no such file");
  }
  std::string text;
  try {
    text = read_file(path);
  } catch (const DataError& e) {
    throw ConfigError(e.what());
  }
  return load_source({path, text, path}, {}, {});
}

ConfigNode apply_extends(const ConfigNode& node, const std::string& including_file) {
  return resolve(node, including_file, {including_file});
}

}  // namespace mgm
