// How a config struct describes itself. A struct lists its fields once, in describe(FieldVisitor&),
// with key, default (the member's initialiser), help and limits. Reading YAML, checking, `config
// show`, `config help` and docs/config.md are visitors over that one list.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mgm {

// Inclusive limits of a number; an absent end is unlimited.
struct Range {
  std::optional<double> min;
  std::optional<double> max;
};
inline Range at_least(double min) { return {min, std::nullopt}; }
inline Range between(double min, double max) { return {min, max}; }

// The values an enumeration takes in YAML: names()[int(value)].
template <class E>
struct EnumNames;  // specialise with: static std::vector<std::string> names();

class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;

  virtual void field(const char* key, bool& value, const char* help) = 0;
  virtual void field(const char* key, int64_t& value, const char* help, Range range = {}) = 0;
  virtual void field(const char* key, double& value, const char* help, Range range = {}) = 0;
  virtual void field(const char* key, std::string& value, const char* help) = 0;
  virtual void field(const char* key, std::vector<int64_t>& value, const char* help,
                     Range each = {}) = 0;
  virtual void field(const char* key, std::vector<double>& value, const char* help,
                     Range each = {}) = 0;
  virtual void field(const char* key, std::vector<std::string>& value, const char* help) = 0;

  // An enumeration: one of EnumNames<E>::names().
  template <class E>
  void choice(const char* key, E& value, const char* help) {
    int index = static_cast<int>(value);
    enum_field(key, EnumNames<E>::names(), index, help);
    value = static_cast<E>(index);
  }

  // A nested struct.
  template <class T>
  void section(const char* key, T& value, const char* help) {
    begin_section(key, help);
    value.describe(*this);
    end_section();
  }

  // A list of structs. A visitor that documents visits one default item.
  template <class T>
  void list(const char* key, std::vector<T>& value, const char* help) {
    value.resize(begin_list(key, value.size(), help));
    for (size_t i = 0; i < value.size(); ++i) {
      begin_item(i);
      value[i].describe(*this);
      end_item();
    }
    if (documents_items()) {
      T item{};
      begin_item(0);
      item.describe(*this);
      end_item();
    }
    end_list();
  }

  // The field named `key` of the struct being described has no default: leaving it out is an error.
  virtual void required(const char* key) = 0;

 protected:
  virtual void enum_field(const char* key, const std::vector<std::string>& names, int& index,
                          const char* help) = 0;
  virtual void begin_section(const char* key, const char* help) = 0;
  virtual void end_section() = 0;
  // Returns how many items the list shall have: the reader answers from the file, others keep
  // `size`.
  virtual size_t begin_list(const char* key, size_t size, const char* help) = 0;
  virtual void begin_item(size_t index) = 0;
  virtual void end_item() = 0;
  virtual void end_list() = 0;
  virtual bool documents_items() const { return false; }
};

}  // namespace mgm
