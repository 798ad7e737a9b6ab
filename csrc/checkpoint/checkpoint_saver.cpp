#include "checkpoint/checkpoint_saver.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "base/error.h"
#include "base/host_memory.h"
#include "base/log.h"
#include "dist/watch.h"

namespace mgm {
namespace {

std::string seconds_text(double s) { return s < 1 ? strf("%.3fs", s) : human_seconds(s); }

// What all ranks were told of a save has its rank in its words: it is not the failure of whoever
// comes to say so first.
void throw_agreed(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const InternalError& e) {
    throw PeerError(e.code(), e.what());
  }
}

}  // namespace

CheckpointSaver::CheckpointSaver(fs::path run_dir, const ParamStore& store,
                                 const std::vector<GroupState>& state, Ranks& ranks,
                                 const SaverSettings& settings)
    : run_dir_(std::move(run_dir)),
      layout_(state_layout(store)),
      tensors_(shard_tensors(state, ranks.topology)),
      device_(store.device()),
      ranks_(ranks),
      settings_(settings) {
  if (settings_.asynchronous) copy_ = std::make_unique<StateCopy>(tensors_);
  if (device_.is_cuda()) prepare();  // page-locking takes seconds: not in the middle of training
}

CheckpointSaver::~CheckpointSaver() {
  if (!job_) return;
  ending_ = true;
  // A rank that hangs breaks settle() between the end of the thread and that of the job.
  if (job_->thread.joinable()) job_->thread.join();
  if (!job_->failure) return;
  try {
    std::rethrow_exception(job_->failure);
  } catch (const std::exception& e) {
    log::error(e.what());
  }
}

bool CheckpointSaver::all_agree(bool mine, const std::string& label) {
  const at::Tensor against = at::full({1}, mine ? 0 : 1, at::kLong);
  ranks_.control->all_reduce_sum(against, label).wait();
  return against.item<int64_t>() == 0;
}

// Memory for the copy, on all ranks or on none: ranks must wait in the same places.
void CheckpointSaver::prepare() {
  if (prepared_) return;
  prepared_ = true;
  if (!copy_) return;
  // Every rank of this host is about to take as much; a little must be left.
  const uint64_t wanted = copy_->bytes() * static_cast<uint64_t>(ranks_.env.local_world);
  const uint64_t left = settings_.host_memory.value_or(available_host_memory());
  const bool fits = wanted + wanted / 20 <= left;
  const Timer timer;
  std::string problem;
  if (!fits) {
    problem = cat("copies of ", human_bytes(static_cast<double>(wanted)), " do not fit into the ",
                  human_bytes(static_cast<double>(left)), " of memory that this host has left");
  }
  if (all_agree(fits, "memory for copies")) {
    try {
      copy_->allocate();
    } catch (const std::exception& e) {
      problem = e.what();
    }
    if (all_agree(problem.empty(), "copies are there")) {
      if (copy_->on_gpu()) {
        log::info(cat("checkpoints: ", human_bytes(static_cast<double>(copy_->bytes())),
                      " of page-locked memory for copies of the state (",
                      seconds_text(timer.seconds()), ")"));
      }
      return;
    }
  }
  log::warn(cat("checkpoint.async: ", problem.empty() ? "another rank has no memory" : problem,
                "; training waits until a checkpoint is written"));
  copy_.reset();
}

void CheckpointSaver::save(CheckpointContent content, const Timer& held) {
  finish();
  prepare();
  job_ = std::make_unique<Job>();
  Job& job = *job_;
  job.content = std::move(content);
  job.report.step = job.content.step;
  job.channel =
      std::make_unique<SaveChannel>(ranks_.store, cat("checkpoint/", saves_++), ranks_.rank(),
                                    ranks_.size(), settings_.timeout_s, ending_);
  if (copy_) copy_->start();
  job.thread = std::thread([this, &job] { run(job); });
  if (!copy_) job.thread.join();
  job.report.held_s = held.seconds();
  if (!copy_) settle(/*wait=*/true);
}

void CheckpointSaver::run(Job& job) {
  try {
    const c10::DeviceGuard guard(device_);
    if (copy_) copy_->complete();
    const auto shard = [&]() -> const std::vector<ShardTensor>& {
      return copy_ ? copy_->copies() : tensors_;
    };
    const WrittenCheckpoint written =
        write_train_checkpoint(run_dir_, job.content, layout_, shard, settings_.keep, *job.channel);
    job.report.bytes = written.bytes;
  } catch (...) {
    job.failure = std::current_exception();
  }
  job.report.total_s = job.since.seconds();
  job.done = true;
}

void CheckpointSaver::before_update() {
  if (!job_) return;
  if (copy_ && !job_->copy_held) {
    const Timer timer;
    copy_->hold();
    job_->copy_held = true;
    job_->report.held_s += timer.seconds();
  }
  settle(/*wait=*/false);
}

void CheckpointSaver::finish() {
  if (job_) settle(/*wait=*/true);
}

// Takes note of a save that is done on every rank.
void CheckpointSaver::settle(bool wait) {
  if (wait && job_->thread.joinable()) job_->thread.join();
  const bool done = job_->done;
  const at::Tensor votes =
      at::tensor({done ? int64_t{1} : 0, done && job_->failure ? int64_t{1} : 0}, at::kLong);
  ranks_.control->all_reduce_sum(votes, "is the checkpoint written").wait();
  if (votes[0].item<int64_t>() < ranks_.size()) return;
  if (job_->thread.joinable()) job_->thread.join();
  const std::unique_ptr<Job> job = std::move(job_);
  job->channel->forget();
  if (job->failure) {
    if (ranks_.size() > 1 && votes[1].item<int64_t>() == ranks_.size()) throw_agreed(job->failure);
    std::rethrow_exception(job->failure);
  }
  if (votes[1].item<int64_t>() > 0) {
    throw InternalError("cannot save the checkpoint of step ", job->report.step,
                        ": another rank could not, see its log");
  }
  last_ = job->report;
  if (copy_) last_.held_s += copy_->device_wait_s();
  if (!ranks_.is_first()) return;
  log::info(cat("checkpoint at step ", last_.step, ": ",
                human_bytes(static_cast<double>(last_.bytes)),
                ranks_.size() > 1 ? cat(" from ", ranks_.size(), " ranks") : std::string(),
                ", training held ", seconds_text(last_.held_s), ", written in ",
                seconds_text(last_.total_s)));
}

}  // namespace mgm
