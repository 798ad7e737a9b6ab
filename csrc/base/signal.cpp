#include "base/signal.h"

#include <unistd.h>

#include <csignal>

namespace mgm {
namespace {

volatile std::sig_atomic_t g_stop = 0;
struct sigaction g_old_term, g_old_int;

void on_signal(int signal) {
  if (g_stop != 0) ::_exit(128 + signal);  // asked twice: do not wait for the save
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
}

StopSignals::~StopSignals() {
  ::sigaction(SIGTERM, &g_old_term, nullptr);
  ::sigaction(SIGINT, &g_old_int, nullptr);
}

int stop_signal() { return g_stop; }
void clear_stop_signal() { g_stop = 0; }

}  // namespace mgm
