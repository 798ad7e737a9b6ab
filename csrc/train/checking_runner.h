// A BlockRunner that looks at every value that leaves a parameter group, forward, and at every
// gradient that comes back to it: for running a step again to see where its numbers break. It waits
// for the device at each of them; not for training.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nn/block_runner.h"

namespace mgm {

struct ValueCheck {
  std::string group;
  bool backward = false;    // the gradient that arrives at the group's results
  int64_t micro_batch = 0;  // of this rank, from 0
  int64_t numel = 0;
  int64_t not_finite = 0;  // of them
  double largest = 0;      // absolute, of the finite ones
  int64_t bad_inputs = 0;  // forward: values of its inputs that are not finite
};

ValueCheck check_values(const std::string& group, const Tensors& values);

class CheckingRunner : public BlockRunner {
 public:
  explicit CheckingRunner(std::unique_ptr<BlockRunner> inner);
  Tensors run(const std::string& group, const Tensors& inputs, const BlockBody& body) override;

  // Checks from here on. `checks` must outlive the backward passes of what runs.
  void watch(std::vector<ValueCheck>* checks) { checks_ = checks; }

 private:
  std::unique_ptr<BlockRunner> inner_;
  std::vector<ValueCheck>* checks_ = nullptr;
  int64_t micro_batch_ = 0;
  bool backward_began_ = false;
};

}  // namespace mgm
