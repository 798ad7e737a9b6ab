#include "text/component.h"

namespace mgm {

bool Component::has(const char* key) const {
  if (!json_.is_object()) fail("expected an object");
  const auto it = json_.find(key);
  return it != json_.end() && !it->is_null();
}

Component Component::at(const char* key) const {
  if (!has(key)) fail("'", key, "' is missing");
  return {json_.at(key), cat(where_, ".", key)};
}

std::vector<Component> Component::items(const char* key) const {
  const Component list = at(key);
  if (!list.json().is_array()) list.fail("expected a list");
  std::vector<Component> out;
  for (size_t i = 0; i < list.json().size(); ++i) {
    out.emplace_back(list.json()[i], cat(list.where(), "[", i, "]"));
  }
  return out;
}

std::string Component::text(const char* key) const {
  const Component value = at(key);
  if (!value.json().is_string()) value.fail("expected text");
  return value.json().get<std::string>();
}

std::string Component::text_or(const char* key, const std::string& other) const {
  return has(key) ? text(key) : other;
}

bool Component::flag(const char* key) const {
  const Component value = at(key);
  if (!value.json().is_boolean()) value.fail("expected true or false");
  return value.json().get<bool>();
}

bool Component::flag_or(const char* key, bool other) const { return has(key) ? flag(key) : other; }

int32_t Component::number(const char* key) const {
  const Component value = at(key);
  if (!value.json().is_number_integer()) value.fail("expected a whole number");
  const auto wide = value.json().get<int64_t>();
  if (wide < 0 || wide > INT32_MAX) value.fail("expected a number from 0 to 2^31 - 1, got ", wide);
  return static_cast<int32_t>(wide);
}

}  // namespace mgm
