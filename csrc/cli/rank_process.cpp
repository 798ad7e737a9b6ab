#include "cli/rank_process.h"

#include <unistd.h>

#include "base/log.h"
#include "cli/commands.h"

namespace mgm::cli {
namespace {

// When another rank has ended the job the sentence goes to the log of this rank; the console has it
// from the rank it happened on, and from the first.
void log_peer_failure(const std::string& sentence, bool says_it) {
  log::set_quiet(!says_it);
  if (says_it) {
    log::error(sentence);
  } else {
    log::info(sentence);
  }
  log::flush();
}

}  // namespace

Meeting meet_ranks(double timeout_s) {
  const LaunchEnv env = read_launch_env();
  if (!env.note.empty()) log::warn(env.note);
  return meet(env, timeout_s);
}

void run_as_rank(const Meeting& meeting,
                 const std::function<ExitCode(const EndProcess& end)>& run) {
  const bool first = meeting.env.rank == 0;
  ExitCode outcome = ExitCode::kOk;
  try {
    outcome = run([first](const std::string& sentence, ExitCode code, bool alone) {
      log_peer_failure(sentence, first || alone);
      ::_exit(static_cast<int>(code));
    });
  } catch (const PeerError& e) {
    log_peer_failure(e.what(), first);
    throw Exit{static_cast<int>(e.code())};
  } catch (const Error& e) {
    log::mute_console();  // main.cpp says it there
    log::error(e.what());
    log::flush();
    throw;
  }
  if (outcome != ExitCode::kOk) throw Exit{static_cast<int>(outcome)};
}

}  // namespace mgm::cli
