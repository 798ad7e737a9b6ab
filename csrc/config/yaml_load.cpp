#include "config/yaml_load.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <map>
#include <sstream>

#include "base/strings.h"

namespace mgm {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 20;
constexpr size_t kMaxValues = 20000;
using Kind = ConfigNode::Kind;

// Ends the parse; what is wrong is in the issue.
struct Fatal {
  ConfigIssue issue;
};

// Builds the tree from parser events: aliases are refused before anything could be expanded.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(std::string_view text, const std::string& source, std::vector<ConfigIssue>& issues)
      : text_(text), source_(source), issues_(issues) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) fatal(mark, "a config is one YAML document; a second one starts here");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    add(leaf(mark, Kind::kNull), mark);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    report(mark, "aliases (*name) are not supported; write the value out, or use extends");
    ConfigNode node = leaf(mark, Kind::kNull);
    node.reported = true;
    add(std::move(node), mark);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    ConfigNode node = leaf(mark, Kind::kScalar);
    node.scalar = value;
    node.quoted = tag == "!";  // yaml-cpp marks quoted scalars with the non-specific tag
    if (node.quoted && !is_closed(mark)) fatal(mark, "this quote is never closed");
    if (!node.quoted && (value == "~" || value == "null" || value == "Null" || value == "NULL")) {
      node.kind = Kind::kNull;
    }
    add(std::move(node), mark);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    begin(mark, tag, anchor, Kind::kSequence);
  }
  void OnSequenceEnd() override { end(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    begin(mark, tag, anchor, Kind::kMap);
  }
  void OnMapEnd() override { end(); }

  ConfigNode take() { return std::move(root_); }

 private:
  // yaml-cpp takes the end of the file for a closing quote. `mark` is at the opening one.
  bool is_closed(const YAML::Mark& mark) const {
    const auto begin = static_cast<size_t>(mark.pos);
    const char quote = begin < text_.size() ? text_[begin] : ' ';
    if (quote != '"' && quote != '\'') return true;  // a block scalar
    for (size_t i = begin + 1; i < text_.size(); ++i) {
      if (quote == '"' && text_[i] == '\\') {
        ++i;
      } else if (text_[i] == quote) {
        if (quote == '"' || i + 1 >= text_.size() || text_[i + 1] != quote) return true;
        ++i;  // '' is one quote inside the text
      }
    }
    return false;
  }

  // A collection that is being read.
  struct Open {
    ConfigNode node;
    bool has_key = false;
    bool dropped = false;  // the value that follows belongs to a refused key
    std::string key;
    Where key_where;
    std::map<std::string, int> lines;  // of the keys so far
  };

  Where at(const YAML::Mark& mark) const { return {source_, mark.line + 1, mark.column + 1}; }
  std::string path() const {
    std::string out;
    for (const Open& open : open_) {
      if (open.node.kind == Kind::kSequence) {
        out += cat("[", open.node.sequence.size(), "]");
      } else if (open.has_key && !open.key.empty()) {
        out += (out.empty() ? "" : ".") + shown(open.key);
      }
    }
    return out;
  }
  [[noreturn]] void fatal(const YAML::Mark& mark, const std::string& message) const {
    throw Fatal{{at(mark), path(), message}};
  }
  void report(const YAML::Mark& mark, const std::string& message) {
    for (const Open& open : open_) {
      if (open.dropped) return;  // inside of something reported already
    }
    issues_.push_back({at(mark), path(), message});
  }
  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != 0)
      report(mark, "anchors (&name) are not supported; use extends to share settings");
  }
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") {
      report(mark, cat("tag ", shown(tag), " is not supported"));
    }
  }
  ConfigNode leaf(const YAML::Mark& mark, Kind kind) {
    if (++values_ > kMaxValues) fatal(mark, cat("more than ", kMaxValues, " values are no config"));
    ConfigNode node;
    node.kind = kind;
    node.where = at(mark);
    return node;
  }

  bool expects_key() const {
    return !open_.empty() && open_.back().node.kind == Kind::kMap && !open_.back().has_key;
  }

  void begin(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Kind kind) {
    if (expects_key()) fatal(mark, "a key must be plain text");
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    if (open_.size() >= kMaxConfigDepth) {
      fatal(mark, cat("nested deeper than ", kMaxConfigDepth, " levels"));
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
    } else if (open_.back().node.kind == Kind::kSequence) {
      open_.back().node.sequence.push_back(std::move(node));
    } else if (open_.back().has_key) {
      Open& parent = open_.back();
      if (!parent.dropped) {
        parent.node.map.push_back({parent.key, parent.key_where, std::move(node)});
      }
      parent.has_key = parent.dropped = false;
    } else {
      add_key(node, mark);
    }
  }

  void add_key(const ConfigNode& node, const YAML::Mark& mark) {
    if (node.kind != Kind::kScalar || node.scalar.empty()) fatal(mark, "a key must be plain text");
    Open& parent = open_.back();
    parent.key = node.scalar;
    parent.key_where = node.where;
    parent.has_key = true;
    const auto [first, is_new] = parent.lines.emplace(node.scalar, node.where.line);
    if (node.scalar == "<<") {
      report(mark, "merge keys are not supported; use extends to share settings");
      parent.dropped = true;
    } else if (!is_new) {
      report(mark, cat("is set twice; the first is on line ", first->second));
      parent.dropped = true;
    }
  }

  const std::string_view text_;
  const std::string& source_;
  std::vector<ConfigIssue>& issues_;
  int documents_ = 0;
  size_t values_ = 0;
  std::vector<Open> open_;
  ConfigNode root_;
};

// Length of the UTF-8 character at `i`, or 0 where there is none (RFC 3629).
size_t utf8_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) -> unsigned {
    return k < text.size() ? static_cast<unsigned char>(text[k]) : 0;
  };
  const auto follows = [&](size_t k) { return (byte(k) & 0xC0) == 0x80; };
  const unsigned first = byte(i), second = byte(i + 1);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(i + 1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const bool overlong = first == 0xE0 && second < 0xA0;
    const bool surrogate = first == 0xED && second > 0x9F;
    return follows(i + 1) && follows(i + 2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const bool outside = (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
    return follows(i + 1) && follows(i + 2) && follows(i + 3) && !outside ? 4 : 0;
  }
  return 0;
}

// Refuses what the parser would read wrongly (it replaces bad bytes silently) or could not bear (it
// recurses per nesting level).
void check_text(std::string_view text, const std::string& source) {
  if (text.size() > kMaxBytes) {
    throw Fatal{{{source}, "", cat(text.size(), " bytes are no config (limit ", kMaxBytes, ")")}};
  }
  constexpr int kMostOpen = 8 * static_cast<int>(kMaxConfigDepth);  // brackets in text count too
  int line = 1, depth = 0, indicators = 0;
  size_t line_start = 0;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    const Where here{source, line, static_cast<int>(i - line_start) + 1};
    const size_t length = utf8_length(text, i);
    if (length == 0) throw Fatal{{here, "", "this byte is not UTF-8"}};
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\r' && c != '\t') || byte == 0x7f) {
      throw Fatal{{here, "", strf("control character 0x%02x", byte)}};
    }
    depth += c == '[' || c == '{' ? 1 : (c == ']' || c == '}') && depth > 0 ? -1 : 0;
    // "- - - -" and "? ? ?" nest block collections on one line.
    const bool nests = (c == '-' || c == '?' || c == ':') &&
                       (i + 1 == text.size() || text[i + 1] == ' ' || text[i + 1] == '\t');
    indicators += nests ? 1 : 0;
    if (depth > kMostOpen || indicators > kMostOpen) {
      throw Fatal{{here, "", "nested too deeply for a config"}};
    }
    i += length;
    if (c == '\n') {
      ++line;
      indicators = 0;
      line_start = i;
    }
  }
}

// What usually leads to the parser's complaint at `where`.
std::string syntax_advice(std::string_view text, const Where& where) {
  size_t begin = 0;
  for (int line = 1; line < where.line && begin < text.size(); ++line) {
    begin = std::min(text.find('\n', begin), text.size() - 1) + 1;
  }
  const std::string_view line = text.substr(begin, text.find('\n', begin) - begin);
  const size_t first = line.find_first_not_of(' ');
  if (first != line.npos && line[first] == '\t') return "; indent with spaces, not tabs";
  const auto column = static_cast<size_t>(where.column > 0 ? where.column - 1 : 0);
  if (column < line.size() && std::string_view("*&!%@`|>").find(line[column]) != line.npos) {
    return cat("; text that begins with ", line[column], " needs quotes");
  }
  return "";
}

std::optional<ConfigNode> parse(std::string_view text, const std::string& source,
                                std::vector<ConfigIssue>& issues) {
  // yaml-cpp leaves a byte order mark out of its positions.
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (text.substr(0, 3) == kByteOrderMark) text.remove_prefix(3);
  try {
    check_text(text, source);
    std::istringstream in{std::string(text)};
    TreeBuilder builder(text, source, issues);
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(builder)) {
    }
    return builder.take();
  } catch (const Fatal& fatal) {
    issues.push_back(fatal.issue);
  } catch (const YAML::Exception& e) {
    const Where where{source, e.mark.line + 1, e.mark.column + 1};
    issues.push_back(
        {where, "", cat("not valid YAML: ", shown(e.msg), syntax_advice(text, where))});
  }
  return std::nullopt;
}

void place(ConfigNode& node, const Where& where) {
  node.where = where;
  for (ConfigNode& item : node.sequence) place(item, where);
  for (ConfigNode::Entry& entry : node.map) {
    entry.where = where;
    place(entry.value, where);
  }
}

}  // namespace

std::optional<ConfigNode> parse_yaml(std::string_view text, const std::string& source,
                                     std::vector<ConfigIssue>& issues) {
  std::optional<ConfigNode> root = parse(text, source, issues);
  if (!root) return std::nullopt;
  if (root->kind == Kind::kNull && !root->reported) {
    root->kind = Kind::kMap;
    root->where = {source, 1, 1};
  }
  if (root->kind != Kind::kMap) {
    issues.push_back({root->where, "", cat("a config is a mapping, got ", root->kind_name())});
    return std::nullopt;
  }
  return root;
}

std::optional<ConfigNode> parse_yaml_value(std::string_view text, const Where& where,
                                           std::vector<ConfigIssue>& issues) {
  std::vector<ConfigIssue> found;
  std::optional<ConfigNode> node = parse(text, where.source, found);
  // A comment or a folded line would silently lose a part of what was typed.
  if (node && node->kind == Kind::kScalar && !node->quoted && node->scalar != trim(text)) {
    found.push_back({where, "", cat("the value reads as '", shown(node->scalar), "'; quote it")});
  }
  for (const ConfigIssue& issue : found) issues.push_back({where, issue.key, issue.message});
  if (!node || !found.empty()) return std::nullopt;
  place(*node, where);
  return node;
}

}  // namespace mgm
