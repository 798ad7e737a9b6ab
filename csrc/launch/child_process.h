// A child process with its output in pipes, that does not outlive its parent: the kernel kills it
// (PR_SET_PDEATHSIG) when the thread that started it ends, by SIGKILL too. It leads a process group
// of its own, so that a terminal's Ctrl-C reaches the parent alone, which passes it on.
#pragma once

#include <string>
#include <vector>

namespace mgm {

struct ChildProcess {
  int pid = 0;
  int out = -1, err = -1;  // read ends, non-blocking; whoever started the child closes them
};

// How a child ended.
struct ChildEnd {
  int exit_code = -1;  // -1: by the signal
  int signal = 0;
  int shell_code() const { return signal != 0 ? 128 + signal : exit_code; }
};

// `command[0]` is a path; standard input is empty. `environment` is all of it, "NAME=value". Throws
// InternalError with what the system said when the command cannot be run. Call it from a thread
// that lives as long as the child is to.
ChildProcess start_child(const std::vector<std::string>& command,
                         const std::vector<std::string>& environment);

// True when the child has ended; it is then gone, and what it started itself is killed.
bool reap_child(int pid, ChildEnd& end);

// To the child and what it started itself; nothing happens if it has ended.
void signal_child(int pid, int signal);

std::string signal_name(int signal);  // "SIGKILL"

}  // namespace mgm
