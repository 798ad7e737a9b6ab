#include "formats/crc32.h"

#include <array>
#include <cstring>

namespace mgm {
namespace {

// Eight tables, eight bytes a turn: tensor files are gigabytes.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables(uint32_t polynomial) {
  Tables t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? polynomial : 0);
    t[0][i] = c;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t i = 0; i < 256; ++i) t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 255];
  }
  return t;
}

constexpr Tables kIeee = make_tables(0xEDB88320);  // both reflected
constexpr Tables kCastagnoli = make_tables(0x82F63B78);

uint32_t run(const Tables& t, std::string_view bytes, uint32_t before) {
  const char* p = bytes.data();
  size_t size = bytes.size();
  uint32_t c = ~before;
  for (; size >= 8; size -= 8, p += 8) {
    uint32_t low = 0, high = 0;
    std::memcpy(&low, p, 4);
    std::memcpy(&high, p + 4, 4);
    low ^= c;
    c = t[7][low & 255] ^ t[6][low >> 8 & 255] ^ t[5][low >> 16 & 255] ^ t[4][low >> 24] ^
        t[3][high & 255] ^ t[2][high >> 8 & 255] ^ t[1][high >> 16 & 255] ^ t[0][high >> 24];
  }
  for (; size > 0; --size, ++p) c = t[0][(c ^ static_cast<uint8_t>(*p)) & 255] ^ (c >> 8);
  return ~c;
}

}  // namespace

uint32_t crc32(std::string_view bytes, uint32_t before) { return run(kIeee, bytes, before); }
uint32_t crc32c(std::string_view bytes, uint32_t before) { return run(kCastagnoli, bytes, before); }

}  // namespace mgm
