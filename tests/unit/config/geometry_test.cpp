#include <gtest/gtest.h>

#include "base/strings.h"
#include "config/image_geometry.h"

namespace mgm {
namespace {

struct Form {
  int64_t hr, lr, patch, grid;
  bool global;
  int64_t patches, window, views, tokens;
};

TEST(Geometry, PublishedFormsAndOddOnes) {
  for (const Form& f : {
           Form{768, 336, 14, 1, false, 24, 8, 1, 576},   // MGM
           Form{1536, 336, 14, 2, true, 24, 8, 5, 2880},  // MGM-HD
           Form{1536, 336, 14, 2, false, 24, 8, 4, 2304},
           Form{512, 224, 14, 1, false, 16, 8, 1, 256},  // ablations
           Form{768, 224, 14, 1, false, 16, 12, 1, 256},
           Form{128, 64, 8, 1, false, 8, 4, 1, 64},     // tiny
           Form{84, 21, 7, 1, false, 3, 7, 1, 9},       // all odd
           Form{1260, 35, 7, 3, true, 5, 21, 10, 250},  // three tiles a side
           Form{32, 8, 8, 1, false, 1, 8, 1, 1},        // one token
       }) {
    ImageConfig image;
    image.hr_size = f.hr;
    image.grid = f.grid;
    image.global = f.global;
    VisionTowerConfig tower;
    tower.image_size = f.lr;
    tower.patch_size = f.patch;
    const auto result = make_geometry(image, tower, HrEncoder::kConvnext);
    ASSERT_TRUE(std::holds_alternative<ImageGeometry>(result))
        << f.hr << ": " << std::get<ConfigProblem>(result).message;
    const auto& g = std::get<ImageGeometry>(result);
    EXPECT_EQ(g.lr_patches, f.patches) << f.hr;
    EXPECT_EQ(g.window, f.window) << f.hr;
    EXPECT_EQ(g.lr_views(), f.views) << f.hr;
    EXPECT_EQ(g.tokens(), f.tokens) << f.hr;
    EXPECT_EQ(g.map_size, f.hr / 4) << f.hr;
    EXPECT_EQ(g.window * g.lr_patches * g.grid, g.map_size) << f.hr;
  }
}

TEST(Geometry, WithoutHrEncoderTheCanvasIsFreeAndTheClassTokenMayStay) {
  ImageConfig image;
  image.hr_size = 701;
  VisionTowerConfig tower;
  tower.select_feature = SelectFeature::kClsPatch;
  const auto result = make_geometry(image, tower, HrEncoder::kNone);
  ASSERT_TRUE(std::holds_alternative<ImageGeometry>(result));
  EXPECT_EQ(std::get<ImageGeometry>(result).tokens(), 577);
  EXPECT_EQ(std::get<ImageGeometry>(result).window, 0);
}

// The sizes an error offers are legal, and no legal size lies nearer.
TEST(Geometry, OfferedSizesAreLegalAndNearest) {
  VisionTowerConfig tower;
  tower.image_size = 21;
  tower.patch_size = 7;
  for (const int64_t grid : {1, 2, 3}) {
    const int64_t unit = 4 * 3 * grid;
    for (int64_t hr = 32; hr < 200; ++hr) {
      ImageConfig image;
      image.grid = grid;
      image.hr_size = hr;
      const auto result = make_geometry(image, tower, HrEncoder::kConvnext);
      EXPECT_EQ(std::holds_alternative<ImageGeometry>(result), hr % unit == 0) << hr;
      const auto* problem = std::get_if<ConfigProblem>(&result);
      if (!problem) continue;
      EXPECT_EQ(problem->key, "image.hr_size");
      const int64_t below = hr / unit * unit, above = below + unit;
      const std::string offer =
          below >= 32 ? cat("nearest: ", below, " or ", above) : cat("nearest: ", above);
      EXPECT_TRUE(problem->message.ends_with(offer)) << problem->message << " / " << offer;
    }
  }
}

}  // namespace
}  // namespace mgm
