// A copy of tensors in kept host memory, made while training goes on: what lies in host memory is
// copied by a background thread, what lies on a GPU by a stream of its own into page-locked memory,
// registered once. The training thread waits only before it overwrites the tensors.
//
// For every copy, in this order: start() and, before the next update, hold() on the training
// thread; complete() on another one.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/train_state.h"

namespace mgm {

class StateCopy {
 public:
  // The tensors must outlive the copy. Takes no memory yet.
  explicit StateCopy(std::vector<ShardTensor> sources);
  StateCopy(const StateCopy&) = delete;
  StateCopy& operator=(const StateCopy&) = delete;

  uint64_t bytes() const { return static_cast<uint64_t>(numel_) * sizeof(float); }
  bool on_gpu() const { return device_.has_value(); }
  // Takes the memory, page-locked for a GPU. Throws when the system refuses. Call it once.
  void allocate();

  // Everything issued on the current stream so far comes before the copy.
  void start();
  // Returns when the copy is whole, and keeps what went wrong for copies().
  void complete();
  // CPU: returns when the copy is whole. GPU: what is issued on the current stream from here on
  // comes behind the copy; the host does not wait.
  void hold();

  // After complete(). Rethrows what it ran into.
  const std::vector<ShardTensor>& copies() const;
  // How long the GPU waited at hold(), in seconds; after complete().
  double device_wait_s() const;

 private:
  void copy_host_tensors();

  std::vector<ShardTensor> sources_, copies_;
  int64_t numel_ = 0;                 // of the slab the copies lie in
  std::optional<at::Device> device_;  // of tensors on a GPU

  std::optional<c10::Stream> stream_;           // that copies come on
  std::optional<c10::Event> copied_, reached_;  // reached_: the GPU came to hold()
  bool held_ = false;                           // hold() was called for this copy
  std::mutex mutex_;
  std::condition_variable changed_;
  bool whole_ = false;          // guarded by mutex_
  std::exception_ptr failure_;  // guarded by mutex_ until whole_
};

}  // namespace mgm
