#include "data/words.h"

#include <array>

namespace mgm {
namespace {

enum Kind : uint8_t { kLetter, kSpace, kMaybeSpace };  // kMaybeSpace begins a wide space, perhaps

constexpr std::array<Kind, 256> kKinds = [] {
  std::array<Kind, 256> kinds{};
  for (const int c : {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x1F, 0x20}) {
    kinds[static_cast<size_t>(c)] = kSpace;
  }
  for (const int c : {0xC2, 0xE1, 0xE2, 0xE3}) kinds[static_cast<size_t>(c)] = kMaybeSpace;
  return kinds;
}();

// Bytes of the white-space character that `text` begins with, 0 if it begins with another one.
// U+0085 U+00A0 U+1680 U+2000-200A U+2028 U+2029 U+202F U+205F U+3000
size_t wide_space(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  if (byte(0) == 0xC2) return byte(1) == 0x85 || byte(1) == 0xA0 ? 2 : 0;
  const unsigned code = byte(0) << 16 | byte(1) << 8 | byte(2);
  const bool space = code == 0xE19A80 || (code >= 0xE28080 && code <= 0xE2808A) ||
                     code == 0xE280A8 || code == 0xE280A9 || code == 0xE280AF || code == 0xE2819F ||
                     code == 0xE38080;
  return space ? 3 : 0;
}

}  // namespace

int64_t count_words(std::string_view utf8) {
  int64_t words = 0;
  bool in_word = false;
  for (size_t i = 0; i < utf8.size(); ++i) {
    const Kind kind = kKinds[static_cast<unsigned char>(utf8[i])];
    bool space = kind == kSpace;
    if (kind == kMaybeSpace) {
      const size_t wide = wide_space(utf8.substr(i, 3));
      space = wide > 0;
      if (space) i += wide - 1;
    }
    words += !space && !in_word;
    in_word = !space;
  }
  return words;
}

}  // namespace mgm
