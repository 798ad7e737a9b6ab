// Saves training checkpoints beside training. save() starts a copy of this rank's part of the state
// and returns; the next forward and backward run meanwhile, only the next optimizer step waits for
// the copy; a background thread then writes, hashes, fsyncs and publishes. Without
// `asynchronous`, or where host memory does not suffice for the copy, save() returns when the
// checkpoint is published.
//
// Every rank makes one and calls it in the same places from the thread that issues collectives. A
// save that failed on any rank throws the same Error(kInternal) on every rank, out of whichever
// call comes next; older checkpoints are then as they were.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <thread>

#include "base/timer.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/state_copy.h"
#include "dist/ranks.h"

namespace mgm {

struct SaverSettings {
  bool asynchronous = true;
  int64_t keep = 2;
  double timeout_s = 1800;  // in which all ranks must have written
  // What the copies of this host's ranks may take; default: what it has left at the first save.
  std::optional<uint64_t> host_memory;
};

struct SaveReport {
  int64_t step = 0;
  uint64_t bytes = 0;  // of all files; on rank 0
  double held_s = 0;   // this rank's training was held
  double total_s = 0;  // from save() to the published checkpoint
};

class CheckpointSaver {
 public:
  // `store`, the state's tensors and `ranks` must outlive the saver. Page-locks host memory for
  // state on a GPU. Collective.
  CheckpointSaver(fs::path run_dir, const ParamStore& store, const std::vector<GroupState>& state,
                  Ranks& ranks, const SaverSettings& settings);
  // Ends a save under way as well as it can: 10 s behind the own shard for the other ranks.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // A save under way is finished first. `held`: runs since training began to be held. Collective.
  void save(CheckpointContent content, const Timer& held);
  // Before every optimizer step. Waits for the copy, and looks whether a save is done. Collective.
  void before_update();
  // Returns when what was saved is published. Collective.
  void finish();

  const SaveReport& last() const { return last_; }  // the last save that was finished

 private:
  struct Job {
    CheckpointContent content;
    SaveReport report;
    bool copy_held = false;  // the copy was waited for
    Timer since;
    std::unique_ptr<SaveChannel> channel;
    std::thread thread;
    std::atomic<bool> done{false};
    // Written before `done`.
    std::exception_ptr failure;
  };

  void prepare();
  bool all_agree(bool mine, const std::string& label);
  void run(Job& job);
  void settle(bool wait);

  const fs::path run_dir_;
  const StateLayout layout_;
  const std::vector<ShardTensor> tensors_;
  const at::Device device_;
  Ranks& ranks_;
  const SaverSettings settings_;
  std::unique_ptr<StateCopy> copy_;  // null: saves are synchronous
  bool prepared_ = false;
  std::atomic<bool> ending_{false};
  int64_t saves_ = 0;
  std::unique_ptr<Job> job_;  // a save under way; whether there is one is equal on all ranks
  SaveReport last_;
};

}  // namespace mgm
