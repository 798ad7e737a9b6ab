#include "base/signal.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <ctime>

namespace mgm {
namespace {

volatile std::sig_atomic_t g_stop = 0;
std::atomic<int64_t> g_stop_ms = 0;  // when it was set
struct sigaction g_old_term, g_old_int, g_old_usr1;

// A scheduler may signal a launcher and its ranks alike, and the launcher passes on what it gets:
// the same signal within this time counts once.
constexpr int64_t kOnceMs = 1000;

int64_t now_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void on_signal(int signal) {
  if (g_stop == signal && now_ms() - g_stop_ms < kOnceMs) return;
  // Asked twice: do not wait for the save. A preemption notice comes before the SIGTERM it warns
  // of.
  if (g_stop != 0 && g_stop != SIGUSR1) ::_exit(128 + signal);
  g_stop_ms = now_ms();
  g_stop = signal;
}

}  // namespace

StopSignals::StopSignals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGTERM, &action, &g_old_term);
  ::sigaction(SIGINT, &action, &g_old_int);
  ::sigaction(SIGUSR1, &action, &g_old_usr1);
}

StopSignals::~StopSignals() {
  ::sigaction(SIGTERM, &g_old_term, nullptr);
  ::sigaction(SIGINT, &g_old_int, nullptr);
  ::sigaction(SIGUSR1, &g_old_usr1, nullptr);
}

int stop_signal() { return g_stop; }
void clear_stop_signal() { g_stop = 0; }

}  // namespace mgm
