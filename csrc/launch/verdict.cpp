#include "launch/verdict.h"

#include "base/error.h"

namespace mgm {
namespace {

const RankFailure* first_failure(const std::vector<HostOutcome>& outcomes, bool echo) {
  const RankFailure* out = nullptr;
  for (const HostOutcome& host : outcomes) {
    if (!host.ranks.failure || host.ranks.failure->is_echo() != echo) continue;
    if (!out || host.ranks.failure->tells_more_than(*out)) out = &*host.ranks.failure;
  }
  return out;
}

std::string with_last_lines(const RankFailure& failure) {
  std::string out = failure.sentence();
  if (failure.last_lines.empty()) return out + "; it wrote nothing here";
  out += "; its last lines:";
  for (const std::string& line : failure.last_lines) out += "\n    " + line;
  return out;
}

}  // namespace

Verdict judge(const std::vector<HostOutcome>& outcomes, int restart, int restarts) {
  Verdict out;
  bool stop_asked = false;
  int stopped_code = 0;
  const HostOutcome* lost = nullptr;
  for (const HostOutcome& host : outcomes) {
    stop_asked = stop_asked || host.ranks.stop_asked;
    if (stopped_code == 0) stopped_code = host.ranks.stopped_code;
    if (host.lost && lost == nullptr) lost = &host;
  }
  const RankFailure* failure = first_failure(outcomes, /*echo=*/false);
  if (failure == nullptr && lost == nullptr) failure = first_failure(outcomes, /*echo=*/true);

  if (failure == nullptr && lost == nullptr) {
    out.code = stopped_code;
    return out;
  }
  if (failure != nullptr) {
    out.cause = *failure;
    out.code = failure->end.shell_code();
    out.text = with_last_lines(*failure);
  } else {
    out.code = static_cast<int>(ExitCode::kDist);
    out.text = cat("the launcher of host ", lost->host, " is gone, and its ranks with it");
  }
  if (failure != nullptr && !failure->may_pass()) {
    if (restarts > 0)
      out.text += cat("\nnot started again: exit code ", out.code, " would come back");
  } else if (stop_asked) {
    if (restarts > 0) out.text += "\nnot started again: a signal asked to stop";
  } else if (restart < restarts) {
    out.restart = true;
    out.text += cat("\nrestart ", restart + 1, " of ", restarts);
  } else if (restarts > 0) {
    out.text += cat("\nnot started again: all ", restarts, " restarts (--restarts) are used up");
  }
  return out;
}

}  // namespace mgm
