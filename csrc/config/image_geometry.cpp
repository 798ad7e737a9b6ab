#include "config/image_geometry.h"

#include "base/strings.h"

namespace mgm {

std::variant<ImageGeometry, ConfigProblem> make_geometry(const ImageConfig& image,
                                                         const VisionTowerConfig& tower,
                                                         HrEncoder hr_encoder) {
  ImageGeometry g;
  g.hr_size = image.hr_size;
  g.lr_size = tower.image_size;
  g.grid = image.grid;
  g.global = image.global;
  if (tower.image_size % tower.patch_size != 0) {
    const int64_t below = tower.image_size / tower.patch_size * tower.patch_size;
    return ConfigProblem{
        "model.vision_tower.image_size",
        cat(tower.image_size, " is not a multiple of patch_size ", tower.patch_size, "; nearest: ",
            below > 0 ? cat(below, " or ") : std::string(), below + tower.patch_size)};
  }
  if (image.global && image.grid == 1) {
    return ConfigProblem{
        "image.global",
        "true needs image.grid of 2 or more: with one tile the global view is that tile"};
  }
  g.lr_patches = tower.image_size / tower.patch_size;
  const bool cls = tower.select_feature == SelectFeature::kClsPatch;
  g.tokens_per_view = g.lr_patches * g.lr_patches + (cls ? 1 : 0);
  if (hr_encoder == HrEncoder::kNone) return g;

  if (cls) {
    return ConfigProblem{
        "model.vision_tower.select_feature",
        cat("cls_patch gives ", g.tokens_per_view, " LR tokens, which is no square, so ",
            "they have no HR windows; use patch, or model.hr_encoder: none")};
  }
  // One LR token looks at p x p positions of the stage-0 map, and the map has stride 4.
  const int64_t unit = 4 * g.lr_patches * g.grid;
  if (image.hr_size < 32 || image.hr_size % unit != 0) {
    int64_t below = image.hr_size / unit * unit;
    while (below > 0 && below < 32) below -= unit;
    int64_t above = below + unit;
    while (above < 32 || above < image.hr_size) above += unit;
    return ConfigProblem{
        "image.hr_size",
        cat(image.hr_size, " does not divide into windows: hr_size must be a multiple of 4 * ",
            g.lr_patches, " LR patches * grid ", g.grid, " = ", unit,
            " and at least 32; nearest: ", below > 0 ? cat(below, " or ") : std::string(), above)};
  }
  g.map_size = image.hr_size / 4;
  g.window = g.map_size / (g.lr_patches * g.grid);
  return g;
}

}  // namespace mgm
