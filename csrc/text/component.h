// A component of a tokenizer.json: a JSON object and where it stands, for errors that name file and
// component. Every reader goes through it, so that nothing in the file is overlooked silently.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace mgm {

class Component {
 public:
  Component(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  const Json& json() const { return json_; }
  const std::string& where() const { return where_; }

  template <class... Args>
  [[noreturn]] void fail(const Args&... args) const {
    throw DataError(where_, ": ", args...);
  }
  [[noreturn]] void unsupported(const std::string& known) const {
    fail("type '", type(), "' is not supported; supported: ", known);
  }

  std::string type() const { return text("type"); }
  // True for a key that is there and not null.
  bool has(const char* key) const;
  Component at(const char* key) const;  // must be there
  std::vector<Component> items(const char* key) const;
  std::string text(const char* key) const;
  std::string text_or(const char* key, const std::string& other) const;
  bool flag(const char* key) const;
  bool flag_or(const char* key, bool other) const;
  int32_t number(const char* key) const;

 private:
  const Json& json_;
  std::string where_;
};

}  // namespace mgm
