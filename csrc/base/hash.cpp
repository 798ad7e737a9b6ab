#include "base/hash.h"

#include <xxhash.h>

#include "base/strings.h"

namespace mgm {

uint64_t hash64(std::string_view bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

uint64_t hash_file(const fs::path& path) {
  const MappedFile file(path);
  return XXH3_64bits(file.data(), file.size());
}

std::string hex64(uint64_t value) {
  return strf("%016llx", static_cast<unsigned long long>(value));
}

}  // namespace mgm
