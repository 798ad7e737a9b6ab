#include "dist/watch.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "base/strings.h"
#include "dist/blame.h"
#include "dist/c10d_group.h"
#include "dist/rank_groups.h"

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

// Those that ranks may wait for each other in.
std::vector<GroupPlace> shared_groups(const Topology& topology) {
  const RankGroups groups(topology);
  std::vector<GroupPlace> out = {groups.control, {kStartGroup, topology.world, 0, 1}};
  for (const GroupPlace* group : groups.connected()) out.push_back(*group);
  return out;
}

std::string beat_key(int rank) { return cat("beat/", rank); }
std::string done_key(int rank) { return cat("done/", rank); }
constexpr const char* kFailed = "failed";
constexpr const char* kFailedCount = "failed_count";

}  // namespace

Watch::Watch(const Ranks& ranks, WatchSettings settings)
    : ranks_(ranks),
      settings_(std::move(settings)),
      host_(host_name()),
      groups_(shared_groups(ranks.topology)) {
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
      // Two beats more than rank 0 may stand still: who is given up here for having stood still
      // must know it by itself when it goes on, or it would take those who gave it up for the lost
      // ones.
      if (stop_ || silent < settings_.limits.silence + 2 * settings_.beat_s) continue;
      lock.unlock();
      const bool serves = ranks_.is_first() && !ranks_.env.store_is_served;
      end_job(serves ? stood_still(silent) : store_is_silent(silent), /*alone=*/true);
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
  say_done();
  if (ranks_.is_first()) wait_for_others(settings_.limits.silence);
}

// It has ended, or knows how the job does.
void Watch::say_done() {
  try {
    store_->set(done_key(ranks_.rank()), "1");
  } catch (const Error&) {
    // The first rank may have closed the store already.
  }
}

// The first rank serves the store: it leaves last, but for ranks that have been silent for as long
// as one may be, or were found so in a hang. With these it would outlast the grace of who ends it,
// and what it has to say of them with it.
void Watch::wait_for_others(double seconds) {
  const double now = now_s();
  try {
    for (int rank = 0; rank < ranks_.size(); ++rank) {
      const Seen& seen = seen_[static_cast<size_t>(rank)];
      if (seen.gone) continue;
      const double heard = seen.beat.empty() ? now : seen.since;
      const double until = std::min(now + seconds, heard + settings_.limits.silence);
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
      heard_store();
    } catch (const std::exception& e) {
      log::debug(cat("watch: ", e.what()));  // the clock decides when it has lasted too long
    }
    lock.lock();
    if (!stop_) wake_.wait_for(lock, std::chrono::duration<double>(settings_.beat_s));
  }
}

void Watch::tick() {
  beat();
  if (const auto failure = reported()) {
    end_job(*failure, /*alone=*/false);
    return;
  }
  if (ranks_.is_first()) look_at_beats();
  check_own_phase();
}

void Watch::heard_store() {
  const std::lock_guard lock(mutex_);
  answered_at_ = now_s();
}

void Watch::beat() {
  store_->set(beat_key(ranks_.rank()),
              Json{{"beat", beats_++}, {"record", to_json(record())}}.dump());
}

// Of a rank that has not begun yet: "".
std::string Watch::beat_of(int rank) {
  if (!store_->has(beat_key(rank))) return "";
  return store_->get(beat_key(rank), settings_.limits.silence);
}

Watch::Failure Watch::failure_here(const std::string& sentence, CauseKind kind) const {
  return {sentence, static_cast<int>(ExitCode::kDist), ranks_.rank(), ranks_.rank(), kind};
}

Watch::Failure Watch::stood_still(double seconds) const {
  return failure_here(cat("rank ", ranks_.rank(), " on ", host_, " has stood still for ",
                          strf("%.0f", seconds), " s: stopped, or its host was"),
                      CauseKind::kOwn);
}

Watch::Failure Watch::store_is_silent(double seconds) const {
  const std::lock_guard lock(mutex_);
  return failure_here(cat("rank ", ranks_.rank(), " on ", host_, " (step ", step_,
                          "): the store of the ranks has not answered for ", strf("%.0f", seconds),
                          " s: ", store_is_gone()),
                      CauseKind::kEcho);
}

std::string Watch::store_is_gone() const {
  return cat(ranks_.env.store_is_served ? "the launcher that serves it" : "rank 0, which serves it",
             " at ", ranks_.env.master_host, ":", ranks_.env.master_port,
             ", its host or the network to it is gone");
}

void Watch::look_at_beats() {
  const double now = now_s();
  const double away = looked_at_ > 0 ? now - looked_at_ : 0;
  looked_at_ = now;
  // Stopped itself, it has seen nobody for as long, and the others have given it up.
  if (away >= settings_.limits.silence) {
    report(stood_still(away));
    return;
  }
  // Nobody is silent for the time that nobody listened, or could be heard.
  const double missed = std::max(0.0, away - 2 * settings_.beat_s);
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    Seen& seen = seen_[static_cast<size_t>(rank)];
    // A rank that has not begun yet is a matter of the start's limit.
    std::string last_beat = beat_of(rank);
    if (last_beat.empty()) continue;
    if (last_beat != seen.beat) {
      seen = {std::move(last_beat), now};
      continue;
    }
    seen.since += missed;
    if (now - seen.since < settings_.limits.silence || store_->has(done_key(rank))) continue;
    const FlightRecord last = flight_record(parse_json(seen.beat, "heartbeat").at("record"));
    report({cat("rank ", rank, " on ", last.host, " has given no sign of life for ",
                strf("%.0f", now - seen.since),
                " s: killed, or its host or network is gone. It was at ", place_of(last)),
            static_cast<int>(ExitCode::kDist), rank, ranks_.rank(), CauseKind::kFound});
    return;
  }
}

std::optional<Watch::Failure> Watch::reported() {
  if (!store_->has(kFailed)) return std::nullopt;
  const Json json = parse_json(store_->get(kFailed, settings_.limits.silence), "failure report");
  return Failure{json.at("sentence").get<std::string>(), json.at("code").get<int>(),
                 json.at("rank").get<int>(), json.at("by").get<int>(),
                 json.at("found").get<bool>() ? CauseKind::kFound : CauseKind::kOwn};
}

// The first report counts; returns whether this was it.
bool Watch::report(const Failure& failure) {
  if (store_->add(kFailedCount, 1) != 1) return false;
  store_->set(kFailed, Json{{"sentence", failure.sentence},
                            {"code", failure.code},
                            {"rank", failure.rank},
                            {"by", failure.by},
                            {"found", failure.kind == CauseKind::kFound}}
                           .dump());
  return true;
}

void Watch::check_own_phase() {
  double seconds = 0;
  {
    const std::lock_guard lock(mutex_);
    seconds = now_s() - phase_since_;
    if (seconds < limit_of(settings_.limits, phase_)) return;
  }
  const std::string sentence = hang_sentence(seconds);
  report(failure_here(sentence, CauseKind::kFound));
}

// Looks at the heartbeats until every rank has given another one, or has been silent for long: a
// rank that is stopped within a collective is behind nobody.
std::vector<FlightRecord> Watch::watch_all_beats() {
  std::vector<std::string> before, now;
  for (int rank = 0; rank < ranks_.size(); ++rank) before.push_back(beat_of(rank));
  const double began = now_s();
  const double patience = std::max(3 * settings_.beat_s, settings_.limits.silence / 3);
  for (bool waits = true; waits && now_s() - began < patience && !reported();) {
    {
      std::unique_lock lock(mutex_);
      if (stop_) break;
      wake_.wait_for(lock, std::chrono::duration<double>(settings_.beat_s));
    }
    beat();  // others look at this rank's
    now.clear();
    for (int rank = 0; rank < ranks_.size(); ++rank) now.push_back(beat_of(rank));
    heard_store();
    waits = false;
    for (size_t r = 0; r < now.size(); ++r)
      waits = waits || (!now[r].empty() && now[r] == before[r]);
  }
  if (now.empty()) now = before;
  const double watched = now_s() - began;
  std::vector<FlightRecord> out;
  for (size_t r = 0; r < now.size(); ++r) {
    if (now[r].empty()) continue;
    out.push_back(flight_record(parse_json(now[r], "heartbeat").at("record")));
    if (now[r] != before[r] || watched < patience) continue;
    const bool older = seen_[r].beat == now[r];
    out.back().silent_s = older ? std::max(watched, now_s() - seen_[r].since) : watched;
    seen_[r].gone = true;
  }
  return out;
}

// All ranks stand still in a hang; those that are behind or silent have caused it.
std::string Watch::hang_sentence(double seconds) {
  constexpr size_t kShown = 4;
  std::vector<std::string> found = blame(watch_all_beats());
  const size_t more = found.size() > kShown ? found.size() - kShown : 0;
  found.resize(found.size() - more);
  const std::lock_guard lock(mutex_);
  return cat("step ", step_, ", phase ", name_of(phase_), " has lasted ", strf("%.0f", seconds),
             " s on rank ", ranks_.rank(), " (", host_, "), the limit dist.timeout_s.",
             name_of(phase_), " is ", limit_of(settings_.limits, phase_), " s: ", join(found, "; "),
             more > 0 ? cat("; and ", more, " more") : "");
}

FlightRecord Watch::record() const {
  FlightRecord out;
  out.rank = ranks_.rank();
  out.world = ranks_.size();
  out.host = host_;
  out.groups = groups_;
  out.collectives = ranks_.log->latest();
  const std::lock_guard lock(mutex_);
  out.phase = name_of(phase_);
  out.step = step_;
  return out;
}

void Watch::leave_record(const std::string& cause, CauseKind kind) {
  if (settings_.run_dir.empty()) return;
  try {
    FlightRecord out = record();
    out.cause = cause;
    out.kind = kind;
    out.collectives = ranks_.log->records();
    out.nccl = nccl_trace();
    write_flight_record(settings_.run_dir, out);
  } catch (const std::exception& e) {
    log::warn(cat("cannot write the flight record: ", e.what()));
  }
}

// From a thread of the watch: the training thread may hang for good.
void Watch::end_job(const Failure& failure, bool alone) {
  {
    const std::lock_guard lock(mutex_);
    if (stop_ || given_up_) return;
    given_up_ = true;
  }
  leave_record(failure.by == ranks_.rank() ? failure.sentence : "", failure.kind);
  if (!alone) say_done();
  // The store would end with it, before the others have looked; one that hangs never does.
  if (!alone && ranks_.is_first()) wait_for_others(3 * settings_.beat_s);
  settings_.end(failure.sentence, static_cast<ExitCode>(failure.code), alone);
}

// ---- the training thread ------------------------------------------------------------------------

std::exception_ptr Watch::failed(std::exception_ptr error) {
  if (!store_ || told_) return error;
  told_ = true;
  Failure mine = failure_here("", CauseKind::kOwn);
  mine.code = static_cast<int>(ExitCode::kInternal);
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
                                place_of(record()), ": ", cause);
  const bool may_be_echo = !settled && mine.code == static_cast<int>(ExitCode::kDist);
  {
    const std::lock_guard lock(mutex_);
    given_up_ = true;  // the watching thread does not end the process under us
  }
  wake_.notify_all();
  thread_.join();
  thread_ = std::thread([] {});
  try {
    const std::optional<Failure> first = may_be_echo ? wait_for_report() : reported();
    const bool counts = !first && report(mine);
    if (first && first->by != ranks_.rank()) {
      leave_record("", CauseKind::kOwn);
    } else if (first) {
      leave_record(first->sentence, first->kind);
    } else {
      leave_record(cause, may_be_echo && !counts ? CauseKind::kEcho : CauseKind::kOwn);
    }
    if (first && (first->rank != ranks_.rank() || may_be_echo)) {
      return std::make_exception_ptr(
          PeerError(static_cast<ExitCode>(first->code), first->sentence));
    }
  } catch (const std::exception& e) {
    leave_record(cause, may_be_echo ? CauseKind::kEcho : CauseKind::kOwn);
    log::debug(cat("watch: ", e.what()));
    if (may_be_echo) {
      return std::make_exception_ptr(DistError(
          "the store of the ranks does not answer: ", store_is_gone(), ". ", mine.sentence));
    }
  }
  return error;
}

// What some rank, or the first one looking at the heartbeats, says within the time that a rank may
// be silent.
std::optional<Watch::Failure> Watch::wait_for_report() {
  std::optional<Failure> first = reported();
  const double until = now_s() + settings_.limits.silence + 2 * settings_.beat_s;
  while (!first && now_s() < until) {
    std::this_thread::sleep_for(std::chrono::duration<double>(settings_.beat_s));
    beat();  // waiting, it is alive
    if (ranks_.is_first()) look_at_beats();
    first = reported();
  }
  return first;
}

}  // namespace mgm
