#include "base/rng.h"

#include <cmath>
#include <numeric>

#include "base/hash.h"
#include "base/philox.h"

namespace mgm {

std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_high, uint64_t counter_low) {
  const PhiloxBlock block = philox_block(key, counter_high, counter_low);
  return {block.v[0], block.v[1], block.v[2], block.v[3]};
}

uint64_t rng_key(uint64_t seed, std::string_view name) { return hash64(name, seed); }

void fill_uniform(float* out, size_t n, uint64_t key, uint64_t first, double low, double high) {
  for (size_t i = 0; i < n; ++i) {
    const uint64_t index = first + i;
    const double u = to_unit(philox(key, 0, index / 4)[index % 4]);
    out[i] = static_cast<float>(low + (high - low) * u);
  }
}

void fill_normal(float* out, size_t n, uint64_t key, uint64_t first, double mean, double std) {
  constexpr double kTwoPi = 6.283185307179586;
  for (size_t i = 0; i < n;) {
    const uint64_t index = first + i;
    const auto bits = philox(key, 1, index / 4);  // four uniforms give four normals (Box-Muller)
    double values[4];
    for (int pair = 0; pair < 2; ++pair) {
      const double r = std::sqrt(-2.0 * std::log(to_unit(bits[static_cast<size_t>(2 * pair)])));
      const double angle = kTwoPi * to_unit(bits[static_cast<size_t>(2 * pair + 1)]);
      values[2 * pair] = r * std::cos(angle);
      values[2 * pair + 1] = r * std::sin(angle);
    }
    for (uint64_t lane = index % 4; lane < 4 && i < n; ++lane, ++i) {
      out[i] = static_cast<float>(mean + std * values[lane]);
    }
  }
}

std::vector<int64_t> permutation(int64_t n, uint64_t key, uint64_t stream) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  uint64_t counter = 0;
  for (int64_t i = n - 1; i > 0; --i) {
    const auto bound = static_cast<uint64_t>(i) + 1;
    const uint64_t limit = bound * (UINT64_MAX / bound);  // reject the tail: no modulo bias
    uint64_t draw = 0;
    do {
      const auto bits = philox(key, stream, counter++);
      draw = (uint64_t{bits[1]} << 32) | bits[0];
    } while (draw >= limit);
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(draw % bound)]);
  }
  return order;
}

}  // namespace mgm
