#include "launch/signal_pipe.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace mgm {
namespace {

volatile int g_write = -1;  // of the one object

void on_signal(int signal) {
  const int saved = errno;
  const char byte = static_cast<char>(signal);
  [[maybe_unused]] const ssize_t written = ::write(g_write, &byte, 1);
  errno = saved;
}

}  // namespace

SignalPipe::SignalPipe() {
  MGM_CHECK(g_write == -1, "two SignalPipes at a time");
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
    throw InternalError("cannot open a pipe: ", std::strerror(errno));
  }
  read_ = ends[0];
  g_write = ends[1];
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGHUP, SIGCHLD, SIGPIPE}) {
    struct sigaction action {
    }, old{};
    ::sigaction(signal, nullptr, &old);
    if (signal == SIGHUP && old.sa_handler == SIG_IGN) continue;
    action.sa_handler = signal == SIGPIPE ? SIG_IGN : on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    ::sigaction(signal, &action, nullptr);
    old_.emplace_back(signal, old);
  }
}

SignalPipe::~SignalPipe() {
  for (const auto& [signal, old] : old_) ::sigaction(signal, &old, nullptr);
  ::close(g_write);
  ::close(read_);
  g_write = -1;
}

std::vector<int> SignalPipe::take() {
  std::vector<int> out;
  char bytes[256];
  ssize_t got = 0;
  while ((got = ::read(read_, bytes, sizeof bytes)) > 0) {
    for (ssize_t i = 0; i < got; ++i) {
      if (bytes[i] != SIGCHLD) out.push_back(bytes[i]);
    }
  }
  return out;
}

}  // namespace mgm
