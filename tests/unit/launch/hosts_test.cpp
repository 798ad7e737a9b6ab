// `mgm launch` on several hosts: launchers as processes of this one that meet on the loopback.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/timer.h"
#include "launch/json_socket.h"
#include "launch/launcher.h"
#include "launch/verdict.h"

namespace mgm {
namespace {

class LaunchHosts : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mgm_hosts_XXXXXX";
    folder_ = ::mkdtemp(name);
    port_ = free_port();
  }
  void TearDown() override {
    for (const int pid : launchers_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    std::filesystem::remove_all(folder_);
  }

  LaunchPlan plan(const std::string& script, int nodes, int node, int nproc) const {
    LaunchPlan p;
    p.command = {"/bin/sh", "-c", script};
    p.environment = own_environment();
    p.environment.push_back("F=" + folder_);
    p.nproc = nproc;
    p.nodes = nodes;
    p.node = node;
    p.master = cat("127.0.0.1:", port_);
    p.grace_s = 5;
    p.restart_delay_s = 0;
    p.join_timeout_s = 20;
    return p;
  }

  // A launcher as a process; its messages go to the file log<node>.
  int start(LaunchPlan p) {
    const int pid = ::fork();
    if (pid == 0) {
      std::ofstream log(folder_ + cat("/log", p.node), std::ios::app);
      p.write = [&](int, std::string_view text) { log << text << std::flush; };
      int code = 99;
      try {
        code = run_launch(p);
      } catch (const Error& e) {
        log << e.what() << std::flush;
        code = static_cast<int>(e.code());
      }
      ::_exit(code);
    }
    launchers_.push_back(pid);
    return pid;
  }

  int wait(int pid) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    std::erase(launchers_, pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  std::string file(const std::string& name) const {
    std::ifstream in(folder_ + "/" + name);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  bool appears(const std::string& name) const {
    const Timer timer;
    while (file(name).empty() && timer.seconds() < 20) ::usleep(2000);
    return !file(name).empty();
  }
  static bool dies(int pid) {
    for (int i = 0; i < 1000; ++i, ::usleep(10000)) {
      std::ifstream stat(cat("/proc/", pid, "/stat"));
      const std::string text{std::istreambuf_iterator<char>(stat), {}};
      if (text.empty() || text.find(") Z ") != std::string::npos) return true;
    }
    return false;
  }
  static bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }

  std::string folder_;
  int port_ = 0;
  std::vector<int> launchers_;
};

TEST_F(LaunchHosts, RanksAreNumberedHostByHost) {
  const std::string script =
      "echo $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $GROUP_RANK/$GROUP_WORLD_SIZE "
      "$MASTER_ADDR restart=$TORCHELASTIC_RESTART_COUNT; "
      "echo $MASTER_PORT $TORCHELASTIC_RUN_ID >> $F/same";
  const int c = start(plan(script, 3, 2, 1));  // in any order
  const int b = start(plan(script, 3, 1, 3));
  ::usleep(200000);
  const int a = start(plan(script, 3, 0, 2));
  EXPECT_EQ(wait(a), 0);
  EXPECT_EQ(wait(b), 0);
  EXPECT_EQ(wait(c), 0);
  EXPECT_TRUE(has(file("log0"), "[1] 1/6 1/2 0/3 127.0.0.1 restart=0\n")) << file("log0");
  EXPECT_TRUE(has(file("log1"), "[2] 2/6 0/3 1/3 127.0.0.1 restart=0\n")) << file("log1");
  EXPECT_TRUE(has(file("log1"), "[4] 4/6 2/3 1/3 127.0.0.1 restart=0\n"));
  EXPECT_TRUE(has(file("log2"), "[5] 5/6 0/1 2/3 127.0.0.1 restart=0\n")) << file("log2");
  const std::string same = file("same");
  const std::string first = same.substr(0, same.find('\n') + 1);
  std::string six;
  for (int i = 0; i < 6; ++i) six += first;
  EXPECT_EQ(same, six);
}

TEST_F(LaunchHosts, FailureOnOneHostEndsAll) {
  const std::string script =
      "[ $RANK = 3 ] && sleep 0.3 && echo no such picture >&2 && exit 3; exec sleep 30";
  LaunchPlan first = plan(script, 2, 0, 2), second = plan(script, 2, 1, 2);
  first.restarts = second.restarts = 5;  // never after exit code 3
  const Timer timer;
  const int a = start(first), b = start(second);
  EXPECT_EQ(wait(a), 3);
  EXPECT_EQ(wait(b), 3);
  EXPECT_LT(timer.seconds(), 20);
  for (const char* log : {"log0", "log1"}) {
    EXPECT_TRUE(has(file(log), "launch: rank 3 (local rank 1 of host ")) << file(log);
    EXPECT_TRUE(has(file(log), "    no such picture\nnot started again")) << file(log);
  }
}

TEST_F(LaunchHosts, AllStartAgainTogether) {
  // Of node 0 one fails in start 0, of node 1 one in start 1; a start is complete or nothing.
  const std::string script =
      "echo $TORCHELASTIC_RESTART_COUNT >> $F/r$RANK; echo $TORCHELASTIC_RESTART_COUNT $MASTER_PORT"
      " >> $F/ports; all() { until [ $(cat $F/r0 $F/r1 | wc -l) = $1 ]; do sleep 0.01; done; }; "
      "[ $RANK.$TORCHELASTIC_RESTART_COUNT = 0.0 ] && all 2 && kill -9 $$; "
      "[ $RANK.$TORCHELASTIC_RESTART_COUNT = 1.1 ] && all 4 && exit 5; "
      "[ $TORCHELASTIC_RESTART_COUNT -lt 2 ] && exec sleep 30; exit 0";
  LaunchPlan first = plan(script, 2, 0, 1), second = plan(script, 2, 1, 1);
  first.restarts = second.restarts = 2;
  const int a = start(first), b = start(second);
  EXPECT_EQ(wait(a), 0) << file("log0");
  EXPECT_EQ(wait(b), 0) << file("log1");
  EXPECT_EQ(file("r0"), "0\n1\n2\n");
  EXPECT_EQ(file("r1"), "0\n1\n2\n");
  EXPECT_TRUE(has(file("log1"), "was killed by SIGKILL")) << file("log1");
  EXPECT_TRUE(has(file("log1"), "restart 2 of 2")) << file("log1");
}

// 4 + 2 ranks would not divide the batch that 8 do.
TEST_F(LaunchHosts, ABadSlotMakesAllHostsSmaller) {
  const std::string script =
      "echo $WORLD_SIZE $LOCAL_WORLD_SIZE >> $F/worlds; all=$F/all.$MASTER_PORT; echo >> $all; "
      "[ $WORLD_SIZE = 8 ] && [ $RANK = 5 ] && "
      "{ until [ $(wc -l < $all) = 8 ]; do sleep 0.01; done; exit 1; }; "
      "[ $WORLD_SIZE = 8 ] && exec sleep 30; exit 0";
  LaunchPlan first = plan(script, 2, 0, 4), second = plan(script, 2, 1, 4);
  first.restarts = second.restarts = 3;
  first.min_nproc = second.min_nproc = 2;
  const int a = start(first), b = start(second);
  EXPECT_EQ(wait(a), 0) << file("log0");
  EXPECT_EQ(wait(b), 0) << file("log1");
  const std::string worlds = file("worlds");
  EXPECT_TRUE(has(worlds, "8 4\n")) << worlds;
  EXPECT_TRUE(worlds.ends_with("4 2\n4 2\n4 2\n4 2\n")) << worlds;
  EXPECT_TRUE(has(file("log0"), "left out: 2 ranks on ")) << file("log0");
}

TEST_F(LaunchHosts, TheCauseMayBeOnAnotherHost) {
  // Rank 0 only notices that its peer is gone, but ends first.
  const std::string script =
      "[ $RANK = 0 ] && { while [ ! -e $F/up ]; do sleep 0.01; done; exit 5; }; "
      "trap : TERM; touch $F/up; sleep 0.5; sleep 0.3; echo loss is nan >&2; exit 6";
  const int a = start(plan(script, 2, 0, 1)), b = start(plan(script, 2, 1, 1));
  EXPECT_EQ(wait(a), 6);
  EXPECT_EQ(wait(b), 6);
  EXPECT_TRUE(has(file("log0"), "loss is nan")) << file("log0");
}

TEST_F(LaunchHosts, LostLauncherEndsTheOthers) {
  const std::string script = "echo $$ > $F/pid$RANK; exec sleep 60";
  const int a = start(plan(script, 2, 0, 1)), b = start(plan(script, 2, 1, 1));
  ASSERT_TRUE(appears("pid0") && appears("pid1"));
  ::kill(b, SIGKILL);
  EXPECT_EQ(wait(a), 5);
  EXPECT_TRUE(has(file("log0"), "the launcher of host ")) << file("log0");
  EXPECT_TRUE(dies(std::stoi(file("pid0"))));
  EXPECT_TRUE(dies(std::stoi(file("pid1"))));
}

TEST_F(LaunchHosts, LostHostMayComeBack) {
  const std::string script =
      "echo $$ > $F/pid$RANK.$TORCHELASTIC_RESTART_COUNT; "
      "[ $TORCHELASTIC_RESTART_COUNT = 0 ] && exec sleep 60; exit 0";
  LaunchPlan first = plan(script, 2, 0, 1), second = plan(script, 2, 1, 1);
  first.restarts = second.restarts = 1;
  const int a = start(first), b = start(second);
  ASSERT_TRUE(appears("pid0.0") && appears("pid1.0"));
  ::kill(b, SIGKILL);
  wait(b);
  const int again = start(second);
  EXPECT_EQ(wait(a), 0) << file("log0");
  EXPECT_EQ(wait(again), 0) << file("log1");
  EXPECT_TRUE(appears("pid1.1"));
}

TEST_F(LaunchHosts, LostNodeZeroEndsTheOthers) {
  const std::string script = "echo $$ > $F/pid$RANK; exec sleep 60";
  const int a = start(plan(script, 2, 0, 1)), b = start(plan(script, 2, 1, 1));
  ASSERT_TRUE(appears("pid0") && appears("pid1"));
  ::kill(a, SIGKILL);
  EXPECT_EQ(wait(b), 5);
  EXPECT_TRUE(has(file("log1"), cat("the launcher of node 0 (127.0.0.1:", port_, ") is gone")));
  EXPECT_TRUE(dies(std::stoi(file("pid0"))));
  EXPECT_TRUE(dies(std::stoi(file("pid1"))));
}

TEST_F(LaunchHosts, StopOfAllRanksIsPassedOnAsTheirCode) {
  // The ranks agree to stop, as those of a training run do; only one launcher got the signal.
  const std::string script =
      "trap 'echo x > $F/stop' TERM; echo up > $F/up$RANK; "
      "while [ ! -e $F/stop ]; do sleep 0.05; done; echo saved; exit 143";
  LaunchPlan first = plan(script, 2, 0, 1), second = plan(script, 2, 1, 1);
  first.restarts = second.restarts = 3;
  const int a = start(first), b = start(second);
  ASSERT_TRUE(appears("up0") && appears("up1"));
  ::kill(b, SIGTERM);
  EXPECT_EQ(wait(a), 143);
  EXPECT_EQ(wait(b), 143);
  EXPECT_TRUE(has(file("log0"), "[0] saved"));
  EXPECT_TRUE(has(file("log1"), "[1] saved"));
}

TEST_F(LaunchHosts, WhoDoesNotComeIsNamed) {
  LaunchPlan lonely = plan("exit 0", 3, 0, 1);
  lonely.join_timeout_s = 1;
  const int a = start(lonely);
  EXPECT_EQ(wait(a), 5);
  EXPECT_TRUE(has(file("log0"), "no launcher came for node 1, 2 of 3 within 1.0s")) << file("log0");
  LaunchPlan other = plan("exit 0", 3, 1, 1);
  other.join_timeout_s = 1;
  const int b = start(other);
  EXPECT_EQ(wait(b), 5);
  EXPECT_TRUE(has(file("log1"), cat("cannot be reached at 127.0.0.1:", port_))) << file("log1");
}

TEST_F(LaunchHosts, SignalWhileWaitingForOthers) {
  const int a = start(plan("exit 0", 3, 0, 1)), b = start(plan("exit 0", 3, 1, 1));
  ::usleep(1000000);  // node 1 has come, node 2 has not
  ::kill(b, SIGINT);
  EXPECT_EQ(wait(b), 130);
  EXPECT_EQ(wait(a), 130);
  EXPECT_TRUE(has(file("log0"), "before the ranks were started")) << file("log0");
}

TEST_F(LaunchHosts, OptionsThatDiffer) {
  const int a = start(plan("exit 0", 2, 0, 1));
  EXPECT_EQ(wait(start(plan("exit 0", 3, 1, 1))), 2);
  EXPECT_TRUE(has(file("log1"), "--nnodes is 3")) << file("log1");
  EXPECT_EQ(wait(start(plan("exit 0", 2, 1, 1))), 0);  // the right one can still come
  EXPECT_EQ(wait(a), 0);
}

TEST_F(LaunchHosts, TwoWithOneNumber) {
  const std::string script = "exit 0";
  const int a = start(plan(script, 3, 0, 1));
  const int b = start(plan(script, 3, 1, 1));
  ::usleep(700000);
  const int c = start(plan(script, 3, 1, 1));
  EXPECT_EQ(wait(b), 2);
  EXPECT_TRUE(has(file("log1"), "another launcher has come with --node-rank 1")) << file("log1");
  const int d = start(plan(script, 3, 2, 1));
  for (const int pid : {a, c, d}) EXPECT_EQ(wait(pid), 0);
}

TEST_F(LaunchHosts, PortInUse) {
  const int taken = listen_on(port_);
  EXPECT_EQ(wait(start(plan("exit 0", 2, 0, 1))), 5);
  ::close(taken);
  EXPECT_TRUE(has(file("log0"), cat("cannot use TCP port ", port_))) << file("log0");
  EXPECT_TRUE(has(file("log0"), "--master")) << file("log0");
}

TEST_F(LaunchHosts, StrangersDoNotDisturb) {
  const int a = start(plan("exit 0", 2, 0, 1));
  int fd = -1;
  for (int i = 0; i < 1000 && fd < 0; ++i, ::usleep(10000)) fd = connect_to("127.0.0.1", port_);
  for (const char* text : {"GET / HTTP/1.1\n\n", "{\"type\":\"ready\"}\n", "{}\n", "[1]\n"}) {
    JsonSocket stranger(fd);
    ASSERT_GT(::write(fd, text, std::string(text).size()), 0);
    for (int i = 0; i < 1000 && !stranger.closed(); ++i, ::usleep(10000)) stranger.receive();
    EXPECT_TRUE(stranger.closed()) << text;
    fd = connect_to("127.0.0.1", port_);
    ASSERT_GE(fd, 0);
  }
  ::close(fd);
  EXPECT_EQ(wait(start(plan("exit 0", 2, 1, 1))), 0);
  EXPECT_EQ(wait(a), 0);
}

// ---- the verdict
// ----------------------------------------------------------------------------------

HostOutcome failed(int exit_code, int signal = 0) {
  HostOutcome out;
  out.host = "h";
  out.ranks.failure.emplace();
  out.ranks.failure->end = {exit_code, signal};
  return out;
}
HostOutcome lost() {
  HostOutcome out;
  out.host = "gone1";
  out.lost = true;
  return out;
}
HostOutcome stopped(int code) {
  HostOutcome out;
  out.ranks.stopped_code = code;
  return out;
}

TEST(Verdict, Codes) {
  EXPECT_EQ(judge({{}, {}}, 0, 3).code, 0);
  EXPECT_EQ(judge({{}, {}}, 0, 3).text, "");
  EXPECT_EQ(judge({{}, stopped(143)}, 0, 3).code, 143);
  EXPECT_FALSE(judge({{}, stopped(143)}, 0, 3).restart);
  EXPECT_EQ(judge({stopped(143), failed(3)}, 0, 0).code, 3);
  EXPECT_EQ(judge({failed(5), failed(-1, 9)}, 0, 0).code, 137);
  EXPECT_EQ(judge({failed(5), failed(5)}, 0, 0).code, 5);
  EXPECT_EQ(judge({failed(4), failed(3)}, 0, 0).code, 4);
}

TEST(Verdict, LostHostIsTheCauseOfEchoesOnly) {
  EXPECT_NE(judge({failed(5), lost()}, 0, 0).text.find("gone1"), std::string::npos);
  EXPECT_EQ(judge({failed(5), lost()}, 0, 0).code, 5);
  EXPECT_TRUE(judge({failed(5), lost()}, 0, 1).restart);
  EXPECT_EQ(judge({lost(), failed(3)}, 0, 1).code, 3);
  EXPECT_FALSE(judge({lost(), failed(3)}, 0, 1).restart);
}

TEST(Verdict, RestartsOfWhatMayPass) {
  for (int code = 1; code < 256; ++code) {
    EXPECT_EQ(judge({failed(code)}, 0, 1).restart, code == 1 || code == 5) << code;
  }
  for (int signal = 1; signal < 32; ++signal) {
    EXPECT_TRUE(judge({failed(-1, signal)}, 2, 3).restart) << signal;
    EXPECT_FALSE(judge({failed(-1, signal)}, 3, 3).restart) << signal;
    EXPECT_FALSE(judge({failed(-1, signal)}, 0, 0).restart) << signal;
  }
  HostOutcome asked = failed(1);
  asked.ranks.stop_asked = true;
  EXPECT_FALSE(judge({asked}, 0, 3).restart);
  EXPECT_FALSE(judge({failed(1), {"other", false, {std::nullopt, 0, true}}}, 0, 3).restart);
}

}  // namespace
}  // namespace mgm
