// A sum over leaves in a fixed tree, whatever the ranks that brought them: leaves are pushed in
// order, equals are added pairwise as they meet ((0 + 1) + (2 + 3)) + ..., and what is left over is
// folded from the small end. At most log2(leaves) + 1 partial sums exist.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace mgm {

class StrictSum {
 public:
  void push(at::Tensor leaf);  // takes it over; added to in place
  // Gives partial sums memory of their own where they are views of larger buffers.
  void compact();
  // The sum, or an undefined tensor when nothing was pushed; the tree is empty afterwards.
  at::Tensor take();

 private:
  struct Partial {
    at::Tensor sum;
    int level;
  };
  std::vector<Partial> partials_;  // levels fall
};

// Sum of a 1-d tensor by halves: one order of additions for one length, on every device and with
// any number of threads (at::sum promises neither). A 0-d tensor.
at::Tensor fixed_order_sum(const at::Tensor& x);
// The same over the rows of [n, m], m a power of two: [n].
at::Tensor fixed_order_row_sums(at::Tensor x);

}  // namespace mgm
