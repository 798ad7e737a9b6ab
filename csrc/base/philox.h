// The rounds of Philox4x32-10 (Salmon et al. 2011) for host and device code: four 32-bit numbers
// that are a pure function of a key and a counter. base/rng.h is what host code calls.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MGM_HOST_DEVICE __host__ __device__
#else
#define MGM_HOST_DEVICE
#endif

namespace mgm {

struct PhiloxBlock {
  uint32_t v[4];
};

MGM_HOST_DEVICE inline PhiloxBlock philox_block(uint64_t key, uint64_t counter_high,
                                                uint64_t counter_low) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  PhiloxBlock c = {{static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
                    static_cast<uint32_t>(counter_high),
                    static_cast<uint32_t>(counter_high >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c.v[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c.v[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.v[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.v[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

}  // namespace mgm
