// `mm_projector.bin`, what stage 1 leaves for stage 2: a flat torch dict of name -> CPU tensor with
// the projector, the mining heads and both vision towers, frozen or not.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/tensor_source.h"
#include "checkpoint/tensor_writer.h"

namespace mgm {

// Whether a parameter belongs into the file: its name contains mm_projector, vision_resampler,
// vlm_uni, vision_tower (and so vision_tower_aux), vision_fpn or vision_stages.
bool in_projector_file(const std::string& name);

// Of the projector or the mining heads, which Mini-Gemini adds to models that exist.
bool is_projector_or_mining(const std::string& name);

// Writes those of `tensors` that belong. Throws CheckpointError if none does.
void write_projector_file(const fs::path& path, const std::vector<TensorSpec>& tensors,
                          const TensorGetter& get);

// Reads ours, MGM's and LLaVA's, under our names, whatever stands before them in the file
// ("module." and the like):
//   mm_projector.*                                   model.mm_projector.*
//   0.weight; model.0.weight of a file that wraps
//     the projector's own dict in `model`            model.mm_projector.0.weight
//   vlm_uni_*                                        model.vlm_uni_*
//   vision_tower.vision_tower.*                      model.vision_tower.vision_tower.*
//   vision_tower_aux.vision_{stem,stages}.*          the same with `aux_tower`, else dropped
// Everything else is in dropped(), which a run does not start with (assemble/initial_weights.h).
// What the file lacks, load_weights refuses, unless another layer of an overlay has it.
std::shared_ptr<const OverlaySource> open_projector_file(const fs::path& path, bool aux_tower);

}  // namespace mgm
