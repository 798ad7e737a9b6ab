// AdamW over the flat fp32 buffers of a ParamStore (torch.optim.AdamW's arithmetic), with the
// global-norm clip read on the device: no host sync. A gradient that is not finite leaves
// everything untouched.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "config/run_config.h"
#include "dist/param_store.h"

namespace mgm {

class AdamW {
 public:
  AdamW(ParamStore& store, const OptimizerConfig& config);

  // One step (1-based) at rate `lr`; returns the fp32 gradient norm before clipping, a device
  // scalar.
  at::Tensor step(double lr, int64_t step);

  // Moments of a trained parameter, views in the parameter's shape; for checkpoints.
  struct Moments {
    std::string name;
    at::Tensor exp_avg, exp_avg_sq;
  };
  std::vector<Moments> moments();

 private:
  struct State {
    at::Tensor exp_avg, exp_avg_sq;  // fp32, as long as the group's master
  };
  at::Tensor gradient_norm() const;

  ParamStore& store_;
  OptimizerConfig config_;
  std::vector<State> states_;  // one per group; undefined where nothing trains
};

}  // namespace mgm
