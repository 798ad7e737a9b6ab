#include "config/flatten.h"

#include "base/strings.h"
#include "config/scalar.h"

namespace mgm {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += strf("\\x%02x", byte);
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
  if (range.min && range.max) return number_text(*range.min) + " to " + number_text(*range.max);
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
    for (FlatField& field : out) field.required = field.required || field.key == prefix() + key;
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

}  // namespace

std::vector<FlatField> flatten(const RunConfig& config) {
  Flattener flattener(/*document=*/false);
  RunConfig copy = config;  // describe() hands out references
  copy.describe(flattener);
  return std::move(flattener.out);
}

const std::vector<FlatField>& config_keys() {
  static const std::vector<FlatField> keys = [] {
    Flattener flattener(/*document=*/true);
    RunConfig().describe(flattener);
    return std::move(flattener.out);
  }();
  return keys;
}

}  // namespace mgm
