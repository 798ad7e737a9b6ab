// What one optimizer step tells the outside: host facts at once, device scalars a little later
// (reading them would stop the GPU).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mgm {

struct StepReport {
  int64_t step = 0;  // 1-based
  int64_t total_steps = 0;
  double lr = 0;
  int64_t num_targets = 0;  // supervised tokens of the global batch
  int64_t tokens = 0;       // rows of the token stream, visual tokens included
  int64_t images = 0;
  int64_t samples = 0;
  int64_t text_only = 0;
  int64_t holes = 0;
  double data_wait_s = 0;
  double step_s = 0;  // wall time since the step before
  double loss = 0;
  double grad_norm = 0;  // before clipping
  // false: no weight has changed; loss or norm not finite, or no target (the loss is then NaN)
  bool updated = true;
  int64_t memory_bytes = 0;  // peak allocated on the device; peak resident set on cpu
};

}  // namespace mgm
