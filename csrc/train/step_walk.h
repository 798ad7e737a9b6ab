// One rank's way through the passes of a micro-batch without a tensor: the program of
// dist/pass_program.h is driven as a training step drives it (train/train_module.h), and what would
// compute is told to a visitor. Memory, time and the rehearsal of collectives are visitors.
#pragma once

#include <vector>

#include "dist/pass_program.h"

namespace mgm {

// What one rank has in a micro-batch.
struct RankBatch {
  bool targets = false;  // something to learn; else the rank computes nothing
  bool images = false;
};

class StepVisitor : public PassActions {
 public:
  // What the program does from here on belongs to the forward or backward pass.
  virtual void begin_pass(bool /*backward*/) {}
  // A use of a group (by its number in the order) computes, its parameters present.
  virtual void forward(int use) = 0;
  virtual void backward(int use) = 0;
  // Its parameters are not there yet, but what it begins with is: rows on their way to experts
  // that are dealt to ranks, and in backward the gradients of their results.
  virtual void before_forward(int /*use*/) {}
  virtual void before_backward(int /*use*/) {}
};

// `order` and `visitor` are those `program` was made with. The step is begun and ended by the
// caller.
void walk_micro_batch(PassProgram& program, const std::vector<GroupUse>& order,
                      const MicroBatch& agreed, const RankBatch& mine, StepVisitor& visitor);

}  // namespace mgm
