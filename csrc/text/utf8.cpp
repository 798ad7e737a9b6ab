#include "text/utf8.h"

#include <array>
#include <cstdint>

namespace mgm {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Decoded {
  size_t length = 1;  // bytes consumed
  bool valid = false;
  bool cut = false;  // invalid only because the text ends
};

// One character at `text[0]`, by the well-formed byte sequences of the Unicode standard, table 3-7.
Decoded decode_one(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  size_t need = 0;
  uint8_t low = 0x80, high = 0xBF;  // limits of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    need = 1;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    need = 2;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    need = 3;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {1, false, false};
  }
  for (size_t i = 1; i <= need; ++i) {
    if (i >= text.size()) return {i, false, true};
    if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xBF))
      return {i, false, false};
  }
  return {need + 1, true, false};
}

// Code points of str.isspace().
bool is_space(std::string_view character) {
  const auto first = static_cast<uint8_t>(character[0]);
  if (first < 0x80) {  // most are
    return first == ' ' || (first >= '\t' && first <= '\r') || (first >= 0x1C && first <= 0x1F);
  }
  static constexpr std::array<std::string_view, 19> kSpaces = {
      "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
      "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
      "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
      "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
  for (const std::string_view space : kSpaces) {
    if (character == space) return true;
  }
  return false;
}

}  // namespace

std::string valid_utf8(std::string_view text, int64_t* replaced) {
  std::string out;
  out.reserve(text.size());
  size_t good = 0;  // valid from here on
  for (size_t at = 0; at < text.size();) {
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Decoded one = decode_one(text.substr(at));
    if (!one.valid) {
      out += text.substr(good, at - good);
      out += kReplacement;
      good = at + one.length;
      if (replaced) ++*replaced;
    }
    at += one.length;
  }
  out += text.substr(good);
  return out;
}

size_t whole_characters(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Decoded one = decode_one(text.substr(at));
    if (one.cut) break;
    at += one.length;
  }
  return at;
}

size_t leading_space(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = decode_one(text.substr(at)).length;
    if (!is_space(text.substr(at, length))) return at;
    at += length;
  }
  return text.size();
}

size_t trailing_space(std::string_view text) {
  size_t end = 0;  // of what is not white space
  for (size_t at = 0; at < text.size();) {
    const size_t length = decode_one(text.substr(at)).length;
    if (!is_space(text.substr(at, length))) end = at + length;
    at += length;
  }
  return text.size() - end;
}

std::string strip(std::string_view text) {
  text.remove_prefix(leading_space(text));
  text.remove_suffix(trailing_space(text));
  return std::string(text);
}

}  // namespace mgm
