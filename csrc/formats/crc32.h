// The two cyclic redundancy checks of the formats here: CRC-32 (zip, IEEE 802.3) and CRC-32C
// (TensorBoard event files, Castagnoli).
#pragma once

#include <cstdint>
#include <string_view>

namespace mgm {

// `before` is the value of what came before, to go on in pieces.
uint32_t crc32(std::string_view bytes, uint32_t before = 0);
uint32_t crc32c(std::string_view bytes, uint32_t before = 0);

}  // namespace mgm
