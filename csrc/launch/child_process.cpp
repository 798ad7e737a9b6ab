#include "launch/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/error.h"

namespace mgm {
namespace {

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
      throw InternalError("cannot open a pipe: ", std::strerror(errno));
    }
    read = ends[0];
    write = ends[1];
  }
  ~Pipe() {
    close_read();
    close_write();
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void close_read() { close_end(read); }
  void close_write() { close_end(write); }
  int take_read() {
    const int fd = read;
    read = -1;
    return fd;
  }

 private:
  static void close_end(int& fd) {
    if (fd >= 0) ::close(fd);
    fd = -1;
  }
};

std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (const std::string& text : texts) out.push_back(const_cast<char*>(text.c_str()));
  out.push_back(nullptr);
  return out;
}

// Between fork and exec: system calls only, since other threads of the parent may hold locks.
[[noreturn]] void become(char* const* argv, char* const* envp, int parent, int out, int err,
                         int failure) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // it ended before prctl
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  ::sigaction(SIGPIPE, &standard, nullptr);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int in = ::open("/dev/null", O_RDONLY);
  if (in >= 0) ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  ::execve(argv[0], argv, envp);
  const int error = errno;
  [[maybe_unused]] const ssize_t written = ::write(failure, &error, sizeof error);
  ::_exit(127);
}

}  // namespace

ChildProcess start_child(const std::vector<std::string>& command,
                         const std::vector<std::string>& environment) {
  const std::vector<char*> argv = pointers(command), envp = pointers(environment);
  Pipe out, err, failure;
  const int parent = ::getpid();
  const int pid = ::fork();
  if (pid < 0) throw InternalError("cannot start a process: ", std::strerror(errno));
  if (pid == 0) become(argv.data(), envp.data(), parent, out.write, err.write, failure.write);
  ::setpgid(pid, pid);  // the child does so too; whoever comes first
  out.close_write();
  err.close_write();
  failure.close_write();
  int error = 0;
  ssize_t got = 0;
  do {
    got = ::read(failure.read, &error, sizeof error);
  } while (got < 0 && errno == EINTR);
  if (got > 0) {  // exec closes the pipe without a word
    ::waitpid(pid, nullptr, 0);
    throw InternalError("cannot run ", command.at(0), ": ", std::strerror(error));
  }
  ::fcntl(out.read, F_SETFL, O_NONBLOCK);
  ::fcntl(err.read, F_SETFL, O_NONBLOCK);
  return {pid, out.take_read(), err.take_read()};
}

bool reap_child(int pid, ChildEnd& end) {
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0) {
    throw InternalError("cannot wait for process ", pid, ": ", std::strerror(errno));
  }
  if (info.si_pid != pid) return false;
  // While it is a zombie its number, and so its group's, belongs to nobody else.
  ::kill(-pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  if (info.si_code == CLD_EXITED) {
    end.exit_code = info.si_status;
  } else {
    end.signal = info.si_status;
  }
  return true;
}

void signal_child(int pid, int signal) {
  if (::kill(-pid, signal) != 0) ::kill(pid, signal);
}

std::string signal_name(int signal) {
  const char* name = ::sigabbrev_np(signal);
  return name == nullptr ? cat("signal ", signal) : cat("SIG", name);
}

}  // namespace mgm
