// LR views of the HR tensor: source coordinates, and the order tiles and global view end up in.
#include "model/image_views.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "ops/patch_mining.h"

namespace mgm {
namespace {

ImageGeometry geometry(int64_t hr, int64_t lr, int64_t grid, bool global) {
  ImageGeometry g;
  g.hr_size = hr;
  g.lr_size = lr;
  g.grid = grid;
  g.global = global;
  return g;
}

TEST(ImageViews, HalvingACheckerGivesCellMeans) {
  const at::Tensor hr = at::zeros({1, 3, 672, 672});
  hr.slice(2, 0, 672, 2).slice(3, 0, 672, 2).fill_(1);
  hr.slice(2, 1, 672, 2).slice(3, 1, 672, 2).fill_(3);
  const at::Tensor lr = lr_views(hr, geometry(672, 336, 1, false));
  EXPECT_EQ(lr.sizes(), (std::vector<int64_t>{1, 1, 3, 336, 336}));
  EXPECT_TRUE(at::equal(lr, at::ones_like(lr)));  // (1 + 0 + 0 + 3) / 4
}

TEST(ImageViews, TwoTapsAtTheScaledCoordinate) {
  // A ramp shows the coordinate itself; two taps, no widening of the filter when shrinking.
  const at::Tensor ramp = at::arange(768, at::kFloat).view({1, 1, 1, 768}).expand({1, 3, 768, 768});
  const at::Tensor lr = lr_views(ramp.contiguous(), geometry(768, 336, 1, false))[0][0][0][0];
  for (int64_t i = 0; i < 336; ++i) {
    const double expected = (double(i) + 0.5) * 768 / 336 - 0.5;
    EXPECT_NEAR(lr[i].item<double>(), expected, 1e-3) << i;
  }
  // A single bright column touches only outputs that have it among their two taps.
  const at::Tensor line = at::zeros({1, 3, 768, 768});
  line.select(3, 100).fill_(1);
  const at::Tensor hit = lr_views(line, geometry(768, 336, 1, false))[0][0][0][0];
  for (int64_t i = 0; i < 336; ++i) {
    const double x = (double(i) + 0.5) * 768 / 336 - 0.5;
    EXPECT_NEAR(hit[i].item<double>(), std::max(0.0, 1 - std::abs(x - 100)), 1e-4) << i;
  }
}

TEST(ImageViews, TilesRowMajorThenTheGlobalView) {
  const at::Tensor hr = at::zeros({1, 3, 128, 128});
  for (int64_t row = 0; row < 2; ++row) {
    for (int64_t column = 0; column < 2; ++column) {
      hr.slice(2, 64 * row, 64 * row + 64)
          .slice(3, 64 * column, 64 * column + 64)
          .fill_(double(1 + 2 * row + column));
    }
  }
  const at::Tensor views = lr_views(hr, geometry(128, 64, 2, true));
  ASSERT_EQ(views.size(1), 5);
  for (int64_t v = 0; v < 4; ++v) {
    EXPECT_TRUE(at::equal(views[0][v], at::full({3, 64, 64}, double(v + 1)))) << v;
  }
  EXPECT_EQ(views[0][4][0][0][0].item<float>(), 1);  // global: all four in one
  EXPECT_EQ(views[0][4][0][63][63].item<float>(), 4);

  // Final order of tokens: the global view first, then the tiles.
  ops::MiningGeometry order;
  order.grid = 2;
  order.global = true;
  order.patches = 3;
  order.window = 8;
  at::Tensor tokens = at::empty({2 * 5, 9, 1});  // two pictures: 8 tiles, then 2 global views
  for (int64_t v = 0; v < 10; ++v) tokens[v].fill_(double(v));
  const at::Tensor arranged = ops::arrange_tokens(tokens, order).view({2, 5, 9});
  const double expected[2][5] = {{8, 0, 1, 2, 3}, {9, 4, 5, 6, 7}};
  for (int64_t n = 0; n < 2; ++n) {
    for (int64_t v = 0; v < 5; ++v) {
      EXPECT_TRUE(at::equal(arranged[n][v], at::full({9}, expected[n][v]))) << n << " " << v;
    }
  }
}

}  // namespace
}  // namespace mgm
