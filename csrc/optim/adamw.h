// AdamW over this rank's parts of a ParamStore (torch.optim.AdamW's arithmetic), with the
// global-norm clip read on the device: no host sync. A gradient that is not finite leaves
// everything untouched.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "config/run_config.h"
#include "dist/param_store.h"
#include "dist/ranks.h"
#include "optim/host_update.h"

namespace mgm {

class AdamW {
 public:
  // `ranks` and `store` must outlive the optimizer.
  AdamW(ParamStore& store, Ranks& ranks, const OptimizerConfig& config);

  // One step (1-based) at rate `lr`; returns the gradient norm over all ranks before clipping, an
  // fp64 device scalar. Collective.
  at::Tensor step(double lr, int64_t step);

  // fp32, as long as the group's master and where it is. For checkpoints.
  struct State {
    ParamGroup* group = nullptr;
    at::Tensor exp_avg, exp_avg_sq;
  };
  std::vector<State>& states() { return states_; }

 private:
  at::Tensor gradient_norm() const;
  at::Tensor strict_gradient_norm() const;
  at::Tensor whole_chunks(const ParamGroup& group) const;
  struct Factors;  // of a step, on the device or the host
  void update(State& state, const float* grad, const at::Tensor& copy, const Factors& factors);
  void update_on_host(Factors factors);

  ParamStore& store_;
  Ranks& ranks_;
  OptimizerConfig config_;
  std::vector<State> states_;  // one per group that trains
#ifdef MGM_WITH_CUDA
  std::unique_ptr<HostUpdate> host_;  // with offload
#endif
};

}  // namespace mgm
