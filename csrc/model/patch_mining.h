// Patch info mining as a module: the three vlm_uni heads (LayerNorm + Linear each) and the call of
// ops::mine. Paper section 3.2.
#pragma once

#include "config/image_geometry.h"
#include "nn/block_runner.h"
#include "nn/layers.h"
#include "ops/patch_mining.h"

namespace mgm {

class PatchMining : public Module {
 public:
  PatchMining(int64_t lr_width, int64_t hr_channels, const ImageGeometry& geometry,
              MiningKernel kernel);

  // lr [V, n^2, C] in the encoder's order and four HR maps NHWC -> {mined tokens [B, N, C],
  // attention [B, N, p^2]}, final order.
  Tensors operator()(const at::Tensor& lr_VNC, const std::vector<at::Tensor>& maps,
                     const ForwardContext& ctx) const;

 private:
  struct Head {
    LayerNorm* norm;
    Linear* linear;
  };
  Head head(const std::string& name, int64_t in, int64_t out);

  ops::MiningGeometry geometry_;
  ops::MiningForm form_;
  Head query_, key_, value_;
};

// What ops::mine needs to know of a geometry.
ops::MiningGeometry mining_geometry(const ImageGeometry& geometry);

}  // namespace mgm
