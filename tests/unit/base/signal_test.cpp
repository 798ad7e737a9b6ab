#include "base/signal.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace mgm {
namespace {

// The wait status of a process that runs `body`.
template <class Body>
int status_of(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(7);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(StopSignals, TheFirstOneOnlySetsTheFlag) {
  for (const int signal : {SIGTERM, SIGINT}) {
    clear_stop_signal();
    const StopSignals handlers;
    EXPECT_EQ(stop_signal(), 0);
    ASSERT_EQ(::raise(signal), 0);
    EXPECT_EQ(stop_signal(), signal);
    clear_stop_signal();
  }
}

TEST(StopSignals, TheSecondOneEndsAtOnce) {
  for (const int second : {SIGTERM, SIGINT}) {
    const int status = status_of([&] {
      const StopSignals handlers;
      ::raise(SIGTERM);
      if (second == SIGTERM) ::usleep(1100000);
      ::raise(second);
    });
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 128 + second);
  }
}

TEST(StopSignals, OneThatALauncherPassesOnTooCountsOnce) {
  const int status = status_of([] {
    const StopSignals handlers;
    ::raise(SIGTERM);
    ::usleep(100000);
    ::raise(SIGTERM);
    ::_exit(stop_signal());
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), SIGTERM);
}

TEST(StopSignals, TheOldHandlersComeBack) {
  const int status = status_of([] {
    { const StopSignals handlers; }
    ::raise(SIGTERM);
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGTERM);
}

}  // namespace
}  // namespace mgm
