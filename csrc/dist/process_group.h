// The ranks of a run. One interface over one process (local), Gloo (CPU) and NCCL (GPU); nothing
// outside dist, optim, checkpoint and train knows there is more than one rank.
//
// Every rank of a group must issue the same collectives in the same order; each is written to the
// process's CollectiveLog with a label, so that a rank that did not can be named.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/collective_log.h"

namespace mgm {

// A collective under way. Its tensors must live until wait() has returned.
class Pending {
 public:
  Pending() = default;  // done already
  explicit Pending(std::function<void()> wait) : wait_(std::move(wait)) {}
  // CPU: returns when the result is there. CUDA: what is issued on the current stream from here on
  // sees the result; the host does not wait. Throws DistError.
  void wait();

 private:
  std::function<void()> wait_;
};

class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& name() const { return name_; }

  // Tensors are contiguous and of one dtype. All throw DistError naming group, operation and label.
  // Element-wise sum over ranks, in place.
  Pending all_reduce_sum(at::Tensor tensor, const std::string& label);
  // out = the ranks' `in`, one after the other. `in` may be this rank's part of `out`.
  Pending all_gather(at::Tensor out, at::Tensor in, const std::string& label);
  // out = this rank's part of the element-wise sum of the ranks' `in`.
  Pending reduce_scatter_sum(at::Tensor out, at::Tensor in, const std::string& label);
  // in = rows for rank 0, 1, ...; out = rows from rank 0, 1, ... Zero rows are fine.
  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows, const std::string& label);
  Pending broadcast(at::Tensor tensor, int root, const std::string& label);
  // Returns when every rank has entered.
  void barrier(const std::string& label);

  // Ends the group's connections in good order, or (abort) at once; the group is then unusable.
  virtual void shutdown() {}
  virtual void abort() {}

 protected:
  ProcessGroup(std::string name, int rank, int size, CollectiveLog* log)
      : name_(std::move(name)), rank_(rank), size_(size), log_(log) {}
  virtual Pending do_all_reduce_sum(at::Tensor& tensor) = 0;
  virtual Pending do_all_gather(at::Tensor& out, at::Tensor& in) = 0;
  virtual Pending do_reduce_scatter_sum(at::Tensor& out, at::Tensor& in) = 0;
  virtual Pending do_all_to_all(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& out_rows,
                                std::vector<int64_t>& in_rows) = 0;
  virtual Pending do_broadcast(at::Tensor& tensor, int root) = 0;
  virtual void do_barrier() = 0;

 private:
  Pending logged(const char* operation, const std::string& label, const at::Tensor& larger,
                 const std::function<Pending()>& issue);

  std::string name_;
  int rank_, size_;
  CollectiveLog* log_;  // may be null
  int64_t sequence_ = 0;
};

// One rank: this process.
std::unique_ptr<ProcessGroup> make_local_group();

}  // namespace mgm
