// Two training checkpoints side by side, parameter by parameter, whatever ranks wrote them. Reads
// both once, in bounded pieces.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "checkpoint/train_checkpoint.h"

namespace mgm {

struct TensorDifference {
  bool equal = true;       // to the bit
  double max_abs = 0;      // of a - b; NaN where one of the two has a NaN
  double relative_l2 = 0;  // |a - b| / |a|; infinite where a is zero and b is not
};

struct ParameterDifference {
  std::string name;
  std::array<TensorDifference, std::size(kStateKinds)> of;  // in the order of kStateKinds

  bool equal() const;
};

struct CheckpointDifference {
  int64_t equal_parameters = 0;
  std::vector<ParameterDifference> parameters;  // those that differ, by name
  std::vector<std::string> only_a, only_b;      // parameters; of another shape: in both lists
  std::vector<std::string> frozen;              // groups whose frozen weights differ

  bool equal() const {
    return parameters.empty() && only_a.empty() && only_b.empty() && frozen.empty();
  }
};

CheckpointDifference compare_checkpoints(const TrainCheckpoint& a, const TrainCheckpoint& b);

}  // namespace mgm
