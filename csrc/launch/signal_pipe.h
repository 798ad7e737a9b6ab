// Signals as bytes of a pipe, for a loop that polls: SIGTERM, SIGINT, SIGUSR1, SIGHUP (unless it is
// ignored, as under nohup) and SIGCHLD, for as long as the object lives; then the old handlers are
// back. SIGPIPE is ignored meanwhile. One object at a time.
#pragma once

#include <csignal>
#include <utility>
#include <vector>

namespace mgm {

class SignalPipe {
 public:
  SignalPipe();
  ~SignalPipe();
  SignalPipe(const SignalPipe&) = delete;
  SignalPipe& operator=(const SignalPipe&) = delete;

  int fd() const { return read_; }  // readable when a signal came
  // The signals that came since the last call, in order, without SIGCHLD.
  std::vector<int> take();

 private:
  int read_ = -1;
  std::vector<std::pair<int, struct sigaction>> old_;
};

}  // namespace mgm
