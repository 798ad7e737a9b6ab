// The geometry of one image: how the HR canvas, the LR views, the mining windows and the visual
// tokens fit together (paper section 3.1-3.2; MGM mgm_arch.py). All sizes in pixels unless named
// otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "config/run_config.h"

namespace mgm {

struct ImageGeometry {
  int64_t hr_size = 0;     // S: side of the square HR canvas
  int64_t lr_size = 0;     // s: side of one LR view, the CLIP input
  int64_t grid = 1;        // g: LR tiles per side
  bool global = false;     // one more LR view of the whole picture, after the tiles
  int64_t lr_patches = 0;  // n: LR tokens per side of a view (s / patch size)
  int64_t map_size = 0;    // h: side of the stage-0 map, S / 4
  int64_t window = 0;  // p: side of the HR window of one LR token, h / (n g); 0 without HR encoder
  int64_t lr_views() const { return grid * grid + (global ? 1 : 0); }
  int64_t tokens_per_view = 0;  // n^2, or n^2 + 1 with select_feature cls_patch
  // Visual tokens of one image, in the order [global, tile(0,0), tile(0,1), ...].
  int64_t tokens() const { return lr_views() * tokens_per_view; }
};

// The geometry, or why there is none: the message gives the numbers and the nearest legal sizes.
std::variant<ImageGeometry, ConfigProblem> make_geometry(const ImageConfig& image,
                                                         const VisionTowerConfig& tower,
                                                         HrEncoder hr_encoder);

}  // namespace mgm
