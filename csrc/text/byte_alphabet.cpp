#include "text/byte_alphabet.h"

#include <utf8proc.h>

#include <array>
#include <cstdint>

namespace mgm {
namespace {

// Printable Latin-1 stands for itself; the other bytes are, in order, the characters from U+0100.
struct Alphabet {
  std::array<std::string, 256> spelling;
  std::array<int16_t, 512> byte;  // of a code point, -1: none

  Alphabet() {
    byte.fill(-1);
    int32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const int32_t code_point = printable ? b : next++;
      utf8proc_uint8_t buffer[4];
      const auto length = utf8proc_encode_char(code_point, buffer);
      spelling[size_t(b)].assign(reinterpret_cast<const char*>(buffer), size_t(length));
      byte[size_t(code_point)] = static_cast<int16_t>(b);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet made;
  return made;
}

}  // namespace

std::string spell_bytes(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) out += alphabet().spelling[static_cast<uint8_t>(c)];
  return out;
}

std::optional<std::string> read_spelled_bytes(std::string_view spelling) {
  std::string out;
  const auto* at = reinterpret_cast<const utf8proc_uint8_t*>(spelling.data());
  for (size_t left = spelling.size(); left > 0;) {
    utf8proc_int32_t c = -1;
    const auto length = utf8proc_iterate(at, static_cast<utf8proc_ssize_t>(left), &c);
    if (length <= 0 || c >= 512 || alphabet().byte[size_t(c)] < 0) return std::nullopt;
    out += static_cast<char>(alphabet().byte[size_t(c)]);
    at += length;
    left -= static_cast<size_t>(length);
  }
  return out;
}

}  // namespace mgm
