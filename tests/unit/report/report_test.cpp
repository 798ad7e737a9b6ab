// Charts of tiny and odd data, the exchange of pictures, the attention overlay.
#include <gtest/gtest.h>

#include <cmath>

#include "report/attention_picture.h"
#include "report/evaluation.h"
#include "report/svg.h"

namespace mgm {
namespace {

TEST(Svg, EmptyAndUnusableDataSayso) {
  EXPECT_NE(svg_chart({"t", false, {}, {}}).find("no data"), std::string::npos);
  EXPECT_NE(svg_chart({"t", true, {1, 2}, {0, -1}}).find("no data"), std::string::npos);
  EXPECT_NE(svg_chart({"t", false, {1}, {std::nan("")}}).find("no data"), std::string::npos);
}

TEST(Svg, OnePointAndConstantsAreDrawn) {
  for (const Chart& chart : {Chart{"a<b", false, {1}, {2}}, Chart{"c", false, {1, 2, 3}, {5, 5, 5}},
                             Chart{"d", true, {1, 2, 3}, {1e-6, 1, 1e6}}}) {
    const std::string svg = svg_chart(chart);
    EXPECT_NE(svg.find("<polyline"), std::string::npos);
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
    EXPECT_EQ(svg.find("a<b"), std::string::npos);
  }
}

TEST(Svg, TicksAreRound) {
  EXPECT_EQ(axis_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(axis_ticks(0.3, 2.1, 4).front(), 0.5);
}

TEST(Evaluation, ExchangeLeavesNoPictureInPlace) {
  for (const size_t count : {2u, 3u, 17u}) {
    std::vector<std::string> names;
    for (size_t i = 0; i < count; ++i) names.push_back("picture" + std::to_string(i));
    const std::map<std::string, std::string> other = exchange_pictures(names, 1);
    std::map<std::string, int> used;
    for (const auto& [from, to] : other) {
      EXPECT_NE(from, to);
      ++used[to];
    }
    EXPECT_EQ(used.size(), count);
    EXPECT_EQ(exchange_pictures(names, 1), other);
  }
  EXPECT_EQ(exchange_pictures({"alone"}, 1).at("alone"), "alone");
}

// 2 x 2 windows of 2 x 2 positions, 4 px each; one window has all its weight on one position.
TEST(AttentionPicture, TintsThePositionThatIsLookedAt) {
  ImageGeometry g;
  g.hr_size = 16;
  g.grid = 1;
  g.lr_patches = 2;
  g.map_size = 4;
  g.window = 2;
  RgbImage canvas(16, 16);
  std::fill(canvas.hwc.begin(), canvas.hwc.end(), uint8_t{0});
  std::vector<float> weights(16, 0.25f);
  weights[4] = weights[5] = weights[6] = 0;  // window (0, 1): everything on its last position
  weights[7] = 1;
  const RgbImage drawn = draw_attention(canvas, weights, g);
  const auto red = [&](int64_t row, int64_t column) { return int(drawn.row(row)[3 * column]); };
  EXPECT_GT(red(4, 12), red(0, 0) + 50);  // position (1, 3) of the map, 4 px each
  EXPECT_EQ(red(0, 8), red(0, 0));        // no weight, no tint
  EXPECT_EQ(red(8, 8), red(0, 0));        // even weights, no tint
}

}  // namespace
}  // namespace mgm
