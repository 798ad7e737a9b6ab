// Device memory of activations, use by use, derived from what each operation's autograd formula
// saves (torch 2.11 derivatives.yaml; ops/attention.cpp; ops/patch_mining.cpp) and from how long
// C++ temporaries live in the model's code. Bytes. The tests measure it against an allocator.
#pragma once

#include "train/plan/planned_model.h"

namespace mgm {

struct UseMemory {
  // From its forward to its backward: saved tensors, or the block's input where it is recomputed.
  double kept = 0;
  // From its forward until the last encoder has run: results that other uses read.
  double held = 0;
  // Highest while it runs, without what other uses keep; its own `kept` is inside.
  double forward = 0;
  double backward = 0;  // 0: no gradient passes
};

struct ActivationPlan {
  std::vector<UseMemory> uses;  // as PlannedModel::uses
  double batch = 0;             // the micro-batch itself and rotary tables; all along
  double pixels = 0;            // pictures as floats; while encoders run
  double logits = 0;            // logits, their softmax and gradient at the head's peak; part of it
};

ActivationPlan plan_activations(const PlannedModel& model, const BatchShape& shape);

}  // namespace mgm
