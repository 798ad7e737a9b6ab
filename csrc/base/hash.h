// xxh3-64, the hash of files, datasets and names. Not cryptographic: it finds accidents, not
// attacks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/fs.h"

namespace mgm {

uint64_t hash64(std::string_view bytes, uint64_t seed = 0);
uint64_t hash_file(const fs::path& path);  // throws Error(kData)
std::string hex64(uint64_t value);         // 16 lower-case digits

}  // namespace mgm
