#include "config/scalar.h"

#include <charconv>
#include <cmath>

#include "base/strings.h"
#include "config/node.h"

namespace mgm {
namespace {

constexpr std::string_view kDigits = "0123456789";

bool starts_with_digit(std::string_view text) {
  return !text.empty() && kDigits.find(text[0]) != kDigits.npos;
}

// A number cut into its parts; `ok` when nothing is left over.
struct Parts {
  bool negative = false;
  std::string_view integer, fraction;
  bool point = false, exponent = false, exponent_negative = false;
  std::string_view exponent_digits;
  bool ok = false;
};

std::string_view take_digits(std::string_view& rest) {
  const size_t end = std::min(rest.find_first_not_of(kDigits), rest.size());
  const std::string_view digits = rest.substr(0, end);
  rest.remove_prefix(end);
  return digits;
}

bool take_sign(std::string_view& rest) {
  const bool negative = !rest.empty() && rest[0] == '-';
  if (negative || (!rest.empty() && rest[0] == '+')) rest.remove_prefix(1);
  return negative;
}

Parts cut(std::string_view text) {
  Parts p;
  p.negative = take_sign(text);
  p.integer = take_digits(text);
  if (!text.empty() && text[0] == '.') {
    p.point = true;
    text.remove_prefix(1);
    p.fraction = take_digits(text);
  }
  const bool mantissa = !p.integer.empty() || !p.fraction.empty();
  if (mantissa && !text.empty() && (text[0] == 'e' || text[0] == 'E')) {
    p.exponent = true;
    text.remove_prefix(1);
    p.exponent_negative = take_sign(text);
    p.exponent_digits = take_digits(text);
  }
  const bool leading_zero = p.integer.size() > 1 && p.integer[0] == '0';
  p.ok = mantissa && text.empty() && !leading_zero && (!p.exponent || !p.exponent_digits.empty());
  return p;
}

// Why a text that looks like a number is none.
std::string advice(std::string_view text) {
  std::string_view rest = text;
  take_sign(rest);
  const std::string lower = to_lower(rest);
  if (lower == ".nan" || lower == "nan" || lower == ".inf" || lower == "inf" ||
      lower == "infinity") {
    return "; it must be finite";
  }
  if (!starts_with_digit(rest)) return "";
  if (rest.find_first_not_of("0123456789_") == rest.npos && rest.find('_') != rest.npos) {
    return cat("; write ", replace_all(std::string(rest), "_", ""));
  }
  if (lower.rfind("0x", 0) == 0 || lower.rfind("0o", 0) == 0 || lower.rfind("0b", 0) == 0) {
    return "; write it in decimal";
  }
  if (rest.size() > 1 && rest[0] == '0' && starts_with_digit(rest.substr(1))) {
    return "; leave out the leading zero, which means octal to some YAML readers";
  }
  return "";
}

BadScalar bad(const char* expected, std::string_view text, bool quoted, const std::string& why) {
  if (quoted) {
    return {cat("expected ", expected, ", got the text '", shown(text), "'; remove the quotes")};
  }
  return {cat("expected ", expected, ", got '", shown(text), "'", why)};
}

}  // namespace

std::variant<int64_t, BadScalar> parse_int(std::string_view text, bool quoted) {
  constexpr const char* kExpected = "a whole number";
  const Parts p = cut(text);
  if (quoted || !p.ok) return bad(kExpected, text, quoted, advice(text));
  if (p.point || p.exponent_negative) {
    return bad(kExpected, text, quoted, "; write it without a decimal point");
  }
  std::string digits(p.integer);
  int64_t exponent = 0;
  if (p.exponent) {
    const std::string_view e = p.exponent_digits;
    if (std::from_chars(e.data(), e.data() + e.size(), exponent).ec != std::errc()) exponent = 99;
  }
  if (digits != "0") digits.append(static_cast<size_t>(std::min<int64_t>(exponent, 99)), '0');
  if (p.negative) digits.insert(0, "-");
  int64_t value = 0;
  if (std::from_chars(digits.data(), digits.data() + digits.size(), value).ec != std::errc()) {
    return bad(kExpected, text, quoted, ", which does not fit in 64 bits");
  }
  return value;
}

std::variant<double, BadScalar> parse_number(std::string_view text, bool quoted) {
  constexpr const char* kExpected = "a number";
  if (quoted || !cut(text).ok) return bad(kExpected, text, quoted, advice(text));
  if (text[0] == '+') text.remove_prefix(1);
  double value = 0;
  const std::errc error = std::from_chars(text.data(), text.data() + text.size(), value).ec;
  if (error != std::errc() || !std::isfinite(value)) {
    return bad(kExpected, text, quoted, ", which is beyond what a double holds");
  }
  return value;
}

std::variant<bool, BadScalar> parse_bool(std::string_view text, bool quoted) {
  constexpr const char* kExpected = "true or false";
  if (!quoted && text == "true") return true;
  if (!quoted && text == "false") return false;
  const std::string lower = to_lower(text);
  for (const char* yes : {"yes", "on", "y", "true", "1"}) {
    if (lower == yes) return bad(kExpected, text, quoted, "; write true");
  }
  for (const char* no : {"no", "off", "n", "false", "0"}) {
    if (lower == no) return bad(kExpected, text, quoted, "; write false");
  }
  return bad(kExpected, text, quoted, "");
}

std::string number_text(double value) {
  char buffer[40];
  const bool plain = std::abs(value) < 1e9 && value == std::floor(value);  // 500000, not 5e+05
  const auto end =
      plain ? std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr
            : std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  std::string text(buffer, end);
  // 2.0e-05: without a point PyYAML reads a text.
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && text.find('.') == std::string::npos) {
    text.insert(exponent, ".0");
  }
  return text;
}

}  // namespace mgm
