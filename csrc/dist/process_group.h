// The ranks of a run, as the trainer sees them. Nothing else in the tree knows there is more than
// one.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

namespace mgm {

class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Element-wise sum over ranks, in place.
  virtual void all_reduce_sum(at::Tensor& tensor) = 0;
  virtual void barrier() = 0;
};

// One rank: this process.
std::unique_ptr<ProcessGroup> make_local_group();

}  // namespace mgm
