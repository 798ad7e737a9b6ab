#include "config/writer.h"

#include <charconv>
#include <cmath>

#include "base/strings.h"

namespace mgm {
namespace {

// The shortest text that reads back to the same double.
std::string number_text(double value) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  return {buffer, end};
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += strf("\\x%02x", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

template <class T, class Text>
std::string list_text(const std::vector<T>& values, Text text) {
  std::vector<std::string> parts;
  for (const T& value : values) parts.push_back(text(value));
  return "[" + join(parts, ", ") + "]";
}

std::string limits_text(const Range& range) {
  if (range.min && range.max) return number_text(*range.min) + " .. " + number_text(*range.max);
  if (range.min) return ">= " + number_text(*range.min);
  if (range.max) return "<= " + number_text(*range.max);
  return "";
}

class Flattener : public FieldVisitor {
 public:
  explicit Flattener(bool document) : document_(document) {}
  std::vector<FlatField> out;

  void field(const char* key, bool& value, const char* help) override {
    add(key, value ? "true" : "false", "bool", "", help);
  }
  void field(const char* key, int64_t& value, const char* help, Range range) override {
    add(key, std::to_string(value), "int", limits_text(range), help);
  }
  void field(const char* key, double& value, const char* help, Range range) override {
    add(key, number_text(value), "number", limits_text(range), help);
  }
  void field(const char* key, std::string& value, const char* help) override {
    add(key, quoted(value), "text", "", help);
  }
  void field(const char* key, std::vector<int64_t>& value, const char* help, Range each) override {
    add(key, list_text(value, [](int64_t v) { return std::to_string(v); }), "list of int",
        limits_text(each), help);
  }
  void field(const char* key, std::vector<double>& value, const char* help, Range each) override {
    add(key, list_text(value, number_text), "list of number", limits_text(each), help);
  }
  void field(const char* key, std::vector<std::string>& value, const char* help) override {
    add(key, list_text(value, quoted), "list of text", "", help);
  }
  void required(const char* key) override {
    for (FlatField& f : out) {
      if (f.key == prefix() + key) f.value = "required";
    }
  }

 protected:
  void enum_field(const char* key, const std::vector<std::string>& names, int& index,
                  const char* help) override {
    add(key, names[static_cast<size_t>(index)], "choice", join(names, ", "), help);
  }
  void begin_section(const char* key, const char* help) override {
    if (document_) add(key, "", "section", "", help);
    path_.emplace_back(key);
  }
  void end_section() override { path_.pop_back(); }
  size_t begin_list(const char* key, size_t size, const char* help) override {
    if (document_ || size == 0) add(key, "[]", "list", "", help);
    lists_.emplace_back(key);
    return size;
  }
  void begin_item(size_t index) override {
    path_.push_back(lists_.back() + (document_ ? "[]" : cat("[", index, "]")));
  }
  void end_item() override { path_.pop_back(); }
  void end_list() override { lists_.pop_back(); }
  bool documents_items() const override { return document_; }

 private:
  std::string prefix() const { return path_.empty() ? "" : join(path_, ".") + "."; }
  void add(const char* key, std::string value, const char* type, std::string limits,
           const char* help) {
    out.push_back({prefix() + key, std::move(value), type, std::move(limits), help});
  }

  bool document_;
  std::vector<std::string> path_, lists_;
};

// Splits "a.b[0].c" into "a", "b", "[0]", "c".
std::vector<std::string> steps_of(const std::string& key) {
  std::vector<std::string> steps;
  for (const std::string& part : split(key, '.')) {
    const size_t bracket = part.find('[');
    steps.push_back(part.substr(0, bracket));
    if (bracket != part.npos) steps.push_back(part.substr(bracket));
  }
  return steps;
}

}  // namespace

std::vector<FlatField> flatten(const RunConfig& config, bool document) {
  Flattener flattener(document);
  RunConfig copy = config;  // describe() hands out references
  copy.describe(flattener);
  return std::move(flattener.out);
}

std::string to_yaml(const RunConfig& config, const std::map<std::string, Where>* origins) {
  std::string out;
  std::vector<std::string> open;
  for (const FlatField& field : flatten(config)) {
    const std::vector<std::string> steps = steps_of(field.key);
    size_t same = 0;
    while (same < open.size() && same + 1 < steps.size() && open[same] == steps[same]) ++same;
    std::string dash;  // pending "- " of a list item whose first key follows on the same line
    for (size_t i = same; i + 1 < steps.size(); ++i) {
      const bool item = steps[i][0] == '[';
      if (!item) {
        out += std::string(2 * i, ' ') + steps[i] + ":\n";
      } else {
        dash = "- ";
      }
    }
    open.assign(steps.begin(), steps.end() - 1);
    const size_t indent = 2 * (steps.size() - 1);
    std::string line =
        dash.empty() ? std::string(indent, ' ') : std::string(indent - 2, ' ') + dash;
    line += steps.back() + ": " + field.value;
    if (origins) {
      const auto it = origins->find(field.key);
      if (line.size() < 48) line.resize(48, ' ');
      line += "  # " + (it == origins->end() ? std::string("default") : it->second.text());
    }
    out += line + "\n";
  }
  return out;
}

std::string reference_markdown() {
  std::string out =
      "# Config reference\n\n"
      "Generated by `mgm config help --markdown`; a test compares this page with the binary. Every "
      "key, its\n"
      "type, default and limits. How files, `extends`, `stages` and `--set` combine: "
      "[training.md](training.md).\n";
  bool table = false;
  for (const FlatField& field : flatten(RunConfig{}, /*document=*/true)) {
    if (field.type == "section") {
      const bool top = field.key.find('.') == field.key.npos;
      out += cat("\n", top ? "## " : "### ", field.key, "\n\n", field.help, "\n");
      table = false;
      continue;
    }
    if (!table) {
      out += "\n| key | type | default | limits | meaning |\n| --- | --- | --- | --- | --- |\n";
      table = true;
    }
    out += cat("| `", field.key, "` | ", field.type, " | ",
               field.value == "required" ? "required" : "`" + field.value + "`", " | ",
               field.limits, " | ", field.help, " |\n");
  }
  return out;
}

}  // namespace mgm
