// Parameters before and after they have storage. A module first declares ParamSpecs (nothing is
// allocated); the run then binds tensors to them, so that a model can be described, counted,
// planned and sharded without existing anywhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "types/group_use.h"
#include "types/packed_weight.h"

namespace mgm {

enum class InitKind { kConstant, kNormal, kUniform };

// kConstant: value a. kNormal: mean 0, standard deviation a. kUniform: in [-a, a].
struct Init {
  InitKind kind = InitKind::kConstant;
  double a = 0;
};

struct ParamSpec {
  std::string name;  // the published name, e.g. "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;
  Init init;
  std::string group;  // the ParamGroup it lives in, e.g. "model.layers.0"
  bool decay = true;  // false for biases and norm weights: no weight decay
  // Another than dense: a frozen matrix that Param::packed holds, in no store.
  WeightFormat format = WeightFormat::kDense;
  int64_t expert = -1;  // the one of its block's experts that it belongs to; -1: none

  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    return n;
  }
};

// What a run does with a parameter (the resolved train.rules).
struct ParamPolicy {
  bool train = false;
  double lr_scale = 1;
  double weight_decay = 0;
};

// A declared parameter. `value` is undefined until bound; modules look it up at call time. Of a
// packed weight (nn/weight_packer.h) `packed` is there and `value` is not.
struct Param {
  ParamSpec spec;
  at::Tensor value;
  PackedWeight packed;
};

}  // namespace mgm
