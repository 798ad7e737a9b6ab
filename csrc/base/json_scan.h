// Walking over JSON text without parsing it.
#pragma once

#include <string_view>

namespace mgm {

struct JsonStrings {
  bool inside = false;

  // Whether text[i] belongs to a string, its quotes included; steps over what a backslash escapes.
  bool at(std::string_view text, size_t& i) {
    const char c = text[i];
    if (!inside) return inside = c == '"';
    if (c == '\\') ++i;
    inside = c != '"';
    return true;
  }
};

}  // namespace mgm
