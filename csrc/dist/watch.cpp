#include "dist/watch.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "dist/c10d_group.h"

namespace mgm {
namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

const char* name_of(Phase phase) {
  constexpr const char* kNames[] = {"start", "step", "save"};
  return kNames[static_cast<int>(phase)];
}

double limit_of(const DistTimeouts& limits, Phase phase) {
  return phase == Phase::kStart ? limits.start : phase == Phase::kStep ? limits.step : limits.save;
}

// Where a rank was, for a sentence about it.
std::string place_of(const FlightRecord& r) {
  return cat("step ", r.step, ", phase ", r.phase, ", last collective: '",
             r.collectives.empty() ? "no collective" : r.collectives.back().label, "'");
}

std::string beat_key(int rank) { return cat("beat/", rank); }
std::string done_key(int rank) { return cat("done/", rank); }
constexpr const char* kFailed = "failed";
constexpr const char* kFailedCount = "failed_count";

}  // namespace

Watch::Watch(const Ranks& ranks, WatchSettings settings)
    : ranks_(ranks), settings_(std::move(settings)), host_(host_name()) {
  if (ranks.size() == 1) return;
  store_ = ranks.store->connect_again()->below("watch");
  phase_since_ = answered_at_ = now_s();
  seen_.resize(static_cast<size_t>(ranks.size()));
  thread_ = std::thread([this] { run(); });
  // Its own thread: a store behind a cut link answers late or never.
  clock_ = std::thread([this] {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      wake_.wait_for(lock, std::chrono::duration<double>(settings_.beat_s));
      const double silent = now_s() - answered_at_;
      if (stop_ || silent < settings_.silence_s + settings_.beat_s) continue;
      lock.unlock();
      end_job({cat("rank ", ranks_.rank(), " on ", host_, " (step ", step_,
                   "): the store of the ranks at ", ranks_.env.master_host, ":",
                   ranks_.env.master_port, " has not answered for ", strf("%.0f", silent),
                   " s: the first rank, its host or the network to it is gone"),
               static_cast<int>(ExitCode::kDist), ranks_.rank()});
      lock.lock();
    }
  });
}

Watch::~Watch() {
  if (!store_) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
  clock_.join();
  if (ranks_.is_first()) wait_for_others();
}

// The first rank serves the store: it leaves last, but for ranks that are gone. With these it would
// outlast the grace of who ends it, and what it has to say of them with it.
void Watch::wait_for_others() {
  const double until = now_s() + settings_.silence_s;
  try {
    for (int rank = 0; rank < ranks_.size(); ++rank) {
      if (seen_[static_cast<size_t>(rank)].gone) continue;
      while (!store_->has(done_key(rank)) && now_s() < until) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
  } catch (const Error& e) {
    log::debug(cat("watch: ", e.what()));
  }
}

void Watch::enter(Phase phase, int64_t step) {
  const std::lock_guard lock(mutex_);
  phase_ = phase;
  step_ = step;
  phase_since_ = now_s();
}

// ---- the watching thread ------------------------------------------------------------------------

void Watch::run() {
  std::unique_lock lock(mutex_);
  while (!stop_ && !given_up_) {
    lock.unlock();
    try {
      tick();
      lock.lock();
      answered_at_ = now_s();
      lock.unlock();
    } catch (const std::exception& e) {
      log::debug(cat("watch: ", e.what()));  // the clock decides when it has lasted too long
    }
    lock.lock();
    if (!stop_) wake_.wait_for(lock, std::chrono::duration<double>(settings_.beat_s));
  }
  lock.unlock();
  try {
    store_->set(done_key(ranks_.rank()), "1");
  } catch (const Error&) {
    // The first rank may have closed the store already.
  }
}

void Watch::tick() {
  store_->set(beat_key(ranks_.rank()),
              Json{{"beat", beats_++}, {"record", to_json(record(""))}}.dump());
  if (const auto failure = reported()) {
    end_job(*failure);
    return;
  }
  if (ranks_.is_first()) look_at_beats();
  check_own_phase();
}

void Watch::look_at_beats() {
  const double now = now_s();
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    Seen& seen = seen_[static_cast<size_t>(rank)];
    // A rank that has not begun yet is a matter of the start's limit.
    if (!store_->has(beat_key(rank))) continue;
    std::string beat = store_->get(beat_key(rank), settings_.silence_s);
    if (beat != seen.beat) {
      seen = {std::move(beat), now};
      continue;
    }
    if (now - seen.since < settings_.silence_s || store_->has(done_key(rank))) continue;
    seen.gone = true;
    const FlightRecord last = flight_record(parse_json(seen.beat, "heartbeat").at("record"));
    report({cat("rank ", rank, " on ", last.host, " has given no sign of life for ",
                strf("%.0f", now - seen.since),
                " s: killed, or its host or network is gone. It was at ", place_of(last)),
            static_cast<int>(ExitCode::kDist), rank});
    return;
  }
}

std::optional<Watch::Failure> Watch::reported() {
  if (!store_->has(kFailed)) return std::nullopt;
  const Json json = parse_json(store_->get(kFailed, settings_.silence_s), "failure report");
  return Failure{json.at("sentence").get<std::string>(), json.at("code").get<int>(),
                 json.at("rank").get<int>()};
}

// The first report counts.
void Watch::report(const Failure& failure) {
  if (store_->add(kFailedCount, 1) != 1) return;
  store_->set(
      kFailed,
      Json{{"sentence", failure.sentence}, {"code", failure.code}, {"rank", failure.rank}}.dump());
}

void Watch::check_own_phase() {
  double seconds = 0;
  {
    const std::lock_guard lock(mutex_);
    seconds = now_s() - phase_since_;
    if (seconds < limit_of(settings_.limits, phase_)) return;
  }
  report({hang_sentence(seconds), static_cast<int>(ExitCode::kDist), ranks_.rank()});
}

// All ranks stand still in a hang; the one that is behind has caused it.
std::string Watch::hang_sentence(double seconds) {
  std::vector<FlightRecord> records;
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    if (!store_->has(beat_key(rank))) continue;
    const std::string beat = store_->get(beat_key(rank), settings_.silence_s);
    records.push_back(flight_record(parse_json(beat, "heartbeat").at("record")));
  }
  // A rank that is stopped is behind before it is silent for long enough to be given up; the first
  // rank has an eye on that.
  std::string silent;
  for (const FlightRecord& r : records) {
    const Seen& seen = seen_[static_cast<size_t>(r.rank)];
    const double since = now_s() - seen.since;
    if (seen.beat.empty() || since < 3 * settings_.beat_s) continue;
    silent += cat("rank ", r.rank, " on ", r.host, " has given no sign of life for ",
                  strf("%.0f", since), " s; ");
  }
  const std::lock_guard lock(mutex_);
  return cat("step ", step_, ", phase ", name_of(phase_), " has lasted ", strf("%.0f", seconds),
             " s on rank ", ranks_.rank(), " (", host_, "), the limit dist.timeout_s.",
             name_of(phase_), " is ", limit_of(settings_.limits, phase_), " s: ", silent,
             blame(records).front());
}

FlightRecord Watch::record(const std::string& cause) const {
  FlightRecord out;
  out.rank = ranks_.rank();
  out.world = ranks_.size();
  out.host = host_;
  out.cause = cause;
  out.collectives = ranks_.log->latest();
  const std::lock_guard lock(mutex_);
  out.phase = name_of(phase_);
  out.step = step_;
  return out;
}

void Watch::leave_record(const std::string& cause) {
  if (settings_.run_dir.empty()) return;
  try {
    FlightRecord out = record(cause);
    out.collectives = ranks_.log->records();
    out.nccl = nccl_trace();
    write_flight_record(settings_.run_dir, out);
  } catch (const std::exception& e) {
    log::warn(cat("cannot write the flight record: ", e.what()));
  }
}

// From a thread of the watch: the training thread may hang for good.
void Watch::end_job(const Failure& failure) {
  {
    const std::lock_guard lock(mutex_);
    if (stop_ || given_up_) return;
    given_up_ = true;
  }
  leave_record(failure.rank == ranks_.rank() ? failure.sentence : "");
  settings_.end(failure.sentence, static_cast<ExitCode>(failure.code));
}

// ---- the training thread ------------------------------------------------------------------------

std::exception_ptr Watch::failed(std::exception_ptr error) {
  if (!store_) return error;
  Failure mine{"", static_cast<int>(ExitCode::kInternal), ranks_.rank()};
  std::string cause;
  bool settled = false;  // the ranks have agreed on what is wrong
  try {
    std::rethrow_exception(error);
  } catch (const PeerError& e) {
    settled = true;
    mine.code = static_cast<int>(e.code());
    cause = e.what();
  } catch (const Error& e) {
    mine.code = static_cast<int>(e.code());
    cause = e.what();
  } catch (const c10::Error& e) {
    cause = e.what_without_backtrace();
  } catch (const std::exception& e) {
    cause = e.what();
  }
  mine.sentence = settled ? cause
                          : cat("rank ", ranks_.rank(), " on ", host_, " failed at ",
                                place_of(record("")), ": ", cause);
  {
    const std::lock_guard lock(mutex_);
    given_up_ = true;  // the watching thread does not end the process under us
  }
  wake_.notify_all();
  thread_.join();
  thread_ = std::thread([] {});
  try {
    std::optional<Failure> first = reported();
    const double until = now_s() + settings_.silence_s + 2 * settings_.beat_s;
    while (!first && !settled && mine.code == static_cast<int>(ExitCode::kDist) &&
           now_s() < until) {
      std::this_thread::sleep_for(std::chrono::duration<double>(settings_.beat_s));
      if (ranks_.is_first()) look_at_beats();
      first = reported();
    }
    if (!first) report(mine);
    leave_record(!first || first->rank == ranks_.rank() ? cause : "");
    if (first && first->rank != ranks_.rank()) {
      return std::make_exception_ptr(
          PeerError(static_cast<ExitCode>(first->code), first->sentence));
    }
  } catch (const std::exception& e) {
    leave_record(cause);
    log::debug(cat("watch: ", e.what()));
  }
  return error;
}

}  // namespace mgm
