// Where the weights of a published model directory lie: in its shards and, for towers that these
// lack, in the towers' own directories.
#pragma once

#include <vector>

#include "base/fs.h"
#include "checkpoint/tensor_source.h"
#include "config/run_config.h"

namespace mgm {

// Whether any tensor's name begins so.
bool any_name(const TensorSource& source, const std::string& prefix);

// Directories that towers are read from; empty: there is no tower, its weights lie in the shards,
// or it has none.
struct TowerDirs {
  fs::path vision_tower, convnext;
};

// The towers that `shards`, those of the model directory `dir`, lack. `named` says where they are:
// a path is relative to the current folder, else to `dir`. Throws CheckpointError if it is neither;
// of a tower without a path `top` may hold the weights, as the directory of an adapter does.
TowerDirs towers_beside(const TensorSource& shards, const fs::path& dir, const ModelConfig& named,
                        const std::vector<OverlayLayer>& top = {});

// The shards of `base` over the towers they lack, and `top` over both.
std::vector<OverlayLayer> open_published(const fs::path& base, const fs::path& dir,
                                         const ModelConfig& named,
                                         const std::vector<OverlayLayer>& top = {});

// `model` with the towers that model.path's config.json names, where its own paths are empty.
ModelConfig with_published_towers(const ModelConfig& model);

// The directories a run that starts from published weights reads its towers from. Empty too where
// that cannot be told: whoever opens the weights learns why.
TowerDirs tower_dirs(const ModelConfig& model);

}  // namespace mgm
