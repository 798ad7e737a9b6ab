// Numbers as a config may write them, a strict subset of YAML 1.2:
//   whole numbers  42  -1  1e6      (an exponent only on digits without a point; no 1.0, no 1.5)
//   numbers        0.5  .5  2e-5
// Refused, with advice: 1_000, 0x1F, 010 (octal to some YAML readers), .nan, .inf, quoted digits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

namespace mgm {

struct BadScalar {
  std::string message;  // "expected a whole number, got '1.5'"
};

std::variant<int64_t, BadScalar> parse_int(std::string_view text, bool quoted = false);
std::variant<double, BadScalar> parse_number(std::string_view text, bool quoted = false);
std::variant<bool, BadScalar> parse_bool(std::string_view text, bool quoted = false);

// The shortest text that parse_number reads back to the same double.
std::string number_text(double value);

}  // namespace mgm
