// Watches the ranks of a job from a thread of each: a rank that fails, hangs or disappears ends the
// job on all ranks with one sentence that names rank, host, step, last collective and cause.
//
// Every second a rank puts a heartbeat (phase, step, last collectives) into the store and looks
// whether some rank has reported a failure. The first rank also looks at the age of every
// heartbeat. A rank whose own phase lasts longer than its limit reports a hang, naming the rank
// that is behind. The time limits of Gloo and NCCL are the outer net.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fs.h"
#include "config/run_config.h"
#include "dist/flight_record.h"
#include "dist/ranks.h"

namespace mgm {

enum class Phase { kStart, kStep, kSave };

// Another rank ended the job; `code` is the exit code of what happened there.
class PeerError : public Error {
 public:
  PeerError(ExitCode code, const std::string& sentence) : Error(code, sentence) {}
};

struct WatchSettings {
  // Seconds a phase may last; and silence: without a heartbeat a rank is gone, without an answer
  // the store.
  DistTimeouts limits;
  double beat_s = 1;  // between heartbeats
  fs::path run_dir;   // takes flight records; empty: none are left
  // Ends the process: called from a thread of the watch, when the thread that trains cannot be
  // relied on. `code` is the exit code that all ranks share; `alone`: no other rank can be told.
  std::function<void(const std::string& sentence, ExitCode code, bool alone)> end;
};

class Watch {
 public:
  // Does nothing where there is one rank. `ranks` must outlive it.
  Watch(const Ranks& ranks, WatchSettings settings);
  ~Watch();  // this rank has ended well, or has said that it failed
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // The training thread begins a phase, or a new step of it: its limit counts from here.
  void enter(Phase phase, int64_t step);

  // The training thread has caught `error` (or what an earlier call returned): tells the other
  // ranks, writes the flight record and returns what to throw on: the error itself, or (an error of
  // communication is mostly the echo of something else) a PeerError with what happened where,
  // waited for up to limits.silence.
  std::exception_ptr failed(std::exception_ptr error);

 private:
  struct Failure {
    std::string sentence;
    int code = 0;
    int rank = -1;  // it happened on
    int by = -1;    // told by
    CauseKind kind = CauseKind::kOwn;
  };
  Failure failure_here(const std::string& sentence, CauseKind kind) const;
  void run();
  void tick();
  void beat();
  void heard_store();
  void look_at_beats();
  std::optional<Failure> reported();
  std::optional<Failure> wait_for_report();
  bool report(const Failure& failure);
  void check_own_phase();
  std::string beat_of(int rank);
  std::vector<FlightRecord> watch_all_beats();
  std::string hang_sentence(double seconds);
  std::string store_is_gone() const;
  FlightRecord record() const;
  void leave_record(const std::string& cause, CauseKind kind);
  void end_job(const Failure& failure, bool alone);
  Failure stood_still(double seconds) const;
  Failure store_is_silent(double seconds) const;
  void say_done();
  void wait_for_others(double seconds);

  const Ranks& ranks_;
  const WatchSettings settings_;
  const std::string host_;
  const std::vector<GroupPlace> groups_;  // for flight records
  std::shared_ptr<Store> store_;          // of the watching thread alone

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false, given_up_ = false;
  bool told_ = false;  // failed() has been called
  Phase phase_ = Phase::kStart;
  int64_t step_ = 0;
  double phase_since_ = 0;
  double answered_at_ = 0;  // when the store last did

  struct Seen {
    std::string beat;
    double since = 0;
    bool gone = false;  // silent while a hang was looked into
  };
  std::vector<Seen> seen_;  // first rank: of every rank
  double looked_at_ = 0;    // when it last looked at them
  int64_t beats_ = 0;
  std::thread thread_, clock_;
};

}  // namespace mgm
