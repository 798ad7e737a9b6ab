// Shapes and inputs of patch mining tests, for the CPU and the GPU ones.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <numeric>
#include <ostream>
#include <vector>

#include "ops/patch_mining.h"

namespace mgm::ops {

using Tensors = std::vector<at::Tensor>;

inline const at::TensorOptions kDouble = at::TensorOptions(at::kDouble);

struct MiningCase {
  const char* name;
  int64_t batch;
  MiningGeometry geometry;
  std::vector<int64_t> sizes, channels;
};

inline std::ostream& operator<<(std::ostream& out, const MiningCase& c) { return out << c.name; }

inline Tensors random_stages(const MiningCase& c, at::TensorOptions options = kDouble) {
  Tensors stages;
  for (size_t s = 0; s < 4; ++s) {
    // Every stage and channel has its own offset and scale, as real features do.
    const at::Tensor scale = at::rand({c.channels[s]}, options) + 0.5;
    const at::Tensor offset = at::randn({c.channels[s]}, options) * 0.5 + static_cast<double>(s);
    stages.push_back(at::randn({c.batch, c.sizes[s], c.sizes[s], c.channels[s]}, options) * scale +
                     offset);
  }
  return stages;
}

inline int64_t sum(const std::vector<int64_t>& v) {
  return std::accumulate(v.begin(), v.end(), int64_t{0});
}

inline std::vector<MiningView> views_of(const MiningGeometry& g) {
  std::vector<MiningView> views = {{g.grid, g.patches, g.window, 1}};
  if (g.global) views.push_back({1, g.patches, g.window, g.grid});
  return views;
}

inline MiningParams random_params(int64_t lr_width, int64_t channels, int64_t d,
                                  at::TensorOptions o) {
  const auto projection = [&](int64_t in) {
    return MiningProjection{at::rand({in}, o) + 0.5, at::randn({in}, o) * 0.3,
                            at::randn({d, in}, o) / std::sqrt(static_cast<double>(in)),
                            at::randn({d}, o) * 0.3};
  };
  return {projection(lr_width), projection(channels), projection(channels)};
}

// timm floors the sides of later stages: 108 gives 54, 27, 13.
inline const std::vector<MiningCase> kMiningCases = {
    {"one_position", 1, {1, false, 1, 1}, {1, 1, 1, 1}, {1, 2, 1, 3}},
    {"window1", 2, {1, false, 27, 1}, {27, 13, 6, 3}, {5, 7, 11, 13}},
    {"window3", 1, {1, false, 9, 3}, {27, 13, 6, 3}, {5, 7, 11, 13}},
    {"whole_map", 1, {1, false, 1, 27}, {27, 13, 6, 3}, {5, 7, 11, 13}},
    {"window8", 2, {1, false, 3, 8}, {24, 12, 6, 3}, {8, 16, 24, 40}},
    {"floored", 1, {1, false, 12, 9}, {108, 54, 27, 13}, {3, 4, 5, 6}},
    {"grid2", 1, {2, false, 3, 4}, {24, 12, 6, 3}, {5, 7, 11, 13}},
    {"grid2_global", 2, {2, true, 2, 8}, {32, 16, 8, 4}, {5, 7, 11, 13}},
    {"grid3", 1, {3, false, 3, 3}, {27, 13, 6, 3}, {5, 7, 11, 13}},
    {"grid3_global", 2, {3, true, 3, 3}, {27, 13, 6, 3}, {5, 7, 11, 13}},
    {"grid4_global", 1, {4, true, 3, 2}, {24, 12, 6, 3}, {5, 7, 11, 13}},
    {"grid2_odd_global", 1, {2, true, 5, 7}, {70, 35, 17, 8}, {2, 3, 4, 5}}};

}  // namespace mgm::ops
