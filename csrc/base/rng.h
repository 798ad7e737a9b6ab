// Counter-based random numbers (Philox4x32-10, Salmon et al. 2011): a value is a pure function of a
// key and a counter. No state to save, nothing that depends on threads, ranks, batches or restarts.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace mgm {

// One block of four 32-bit numbers.
std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_high, uint64_t counter_low);

// A key for everything that belongs to `name` under `seed`.
uint64_t rng_key(uint64_t seed, std::string_view name);

inline double to_unit(uint32_t bits) { return (bits + 0.5) * (1.0 / 4294967296.0); }  // in (0, 1)

// Uniform in (0, 1) for (key, a, b), e.g. (layer key, step, sample).
inline double uniform01(uint64_t key, uint64_t a, uint64_t b) {
  return to_unit(philox(key, a, b)[0]);
}

// Fills `out[0, n)` with values number first, first+1, ... of the stream `key`: the value at an
// index does not depend on how the range is cut.
void fill_normal(float* out, size_t n, uint64_t key, uint64_t first, double mean, double std);
void fill_uniform(float* out, size_t n, uint64_t key, uint64_t first, double low, double high);

// A permutation of 0..n-1 (Fisher-Yates, unbiased), a pure function of key and stream.
std::vector<int64_t> permutation(int64_t n, uint64_t key, uint64_t stream);

}  // namespace mgm
