// `mgm launch` on one host with shell scripts as ranks: exit codes, signals, grace, restarts,
// output.
#include "launch/launcher.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/strings.h"
#include "base/timer.h"

namespace mgm {
namespace {

struct Launched {
  int code = 0;
  std::string out, err;
  double seconds = 0;

  // Lines of a stream that contain `text`.
  static std::vector<std::string> lines(const std::string& stream, const std::string& text) {
    std::vector<std::string> found;
    for (const std::string& line : split(stream, '\n')) {
      if (line.find(text) != std::string::npos) found.push_back(line);
    }
    return found;
  }
};

class Launcher : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mgm_launch_XXXXXX";
    folder_ = ::mkdtemp(name);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // `script` sees $RANK and the folder $F; it is what every rank runs.
  LaunchPlan plan(const std::string& script, int nproc) const {
    LaunchPlan p;
    p.command = {"/bin/sh", "-c", script};
    p.environment = own_environment();
    std::erase_if(p.environment, [](const std::string& s) {
      return s.starts_with("OMP_NUM_THREADS=") || s.starts_with("CUDA_VISIBLE_DEVICES=");
    });
    p.environment.push_back("F=" + folder_);
    p.nproc = nproc;
    p.grace_s = 5;
    p.restart_delay_s = 0;
    return p;
  }

  static Launched run(LaunchPlan p) {
    Launched done;
    p.write = [&](int fd, std::string_view text) { (fd == 1 ? done.out : done.err) += text; };
    const Timer timer;
    done.code = run_launch(p);
    done.seconds = timer.seconds();
    return done;
  }

  std::string file(const std::string& name) const {
    std::ifstream in(folder_ + "/" + name);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  // Sends a signal to this process once the file is there.
  std::thread signal_when(const std::string& name, int signal) const {
    return std::thread([path = folder_ + "/" + name, signal] {
      const Timer timer;
      while (!std::filesystem::exists(path) && timer.seconds() < 20) ::usleep(2000);
      ::kill(::getpid(), signal);
    });
  }

  std::string folder_;
};

// ---- the ranks' variables and output
// --------------------------------------------------------------

TEST_F(Launcher, VariablesOfTorchrun) {
  LaunchPlan p = plan(
      "echo $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $GROUP_RANK/$GROUP_WORLD_SIZE "
      "$MASTER_ADDR ${MASTER_PORT:+port} restart=$TORCHELASTIC_RESTART_COUNT/"
      "$TORCHELASTIC_MAX_RESTARTS agent=${TORCHELASTIC_USE_AGENT_STORE-unset} "
      "id=${TORCHELASTIC_RUN_ID:+set} mine=$MINE",
      3);
  // As if this launcher ran under another one.
  for (const char* s : {"RANK=7", "WORLD_SIZE=9", "TORCHELASTIC_USE_AGENT_STORE=True",
                        "MASTER_PORT=1", "MINE=a=b"}) {
    p.environment.push_back(s);
  }
  const Launched done = run(p);
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(done.err, "");
  for (int r = 0; r < 3; ++r) {
    const std::string line = cat("[", r, "] ", r, "/3 ", r,
                                 "/3 0/1 127.0.0.1 port restart=0/0 agent=unset id=set mine=a=b\n");
    EXPECT_NE(done.out.find(line), std::string::npos) << done.out << line;
  }
}

TEST_F(Launcher, AllRanksShareOneFreePort) {
  const Launched done = run(plan("echo $MASTER_PORT; echo $TORCHELASTIC_RUN_ID", 3));
  std::vector<std::string> words;
  for (const std::string& line : split(done.out, '\n')) {
    if (!line.empty()) words.push_back(line.substr(4));
  }
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  EXPECT_EQ(words.size(), 2) << done.out;
}

TEST_F(Launcher, ThreadsAreShared) {
  const int cores = usable_cores();
  EXPECT_EQ(run(plan("echo $OMP_NUM_THREADS", 1)).out, cat("[0] ", cores, "\n"));
  EXPECT_EQ(Launched::lines(run(plan("echo $OMP_NUM_THREADS", cores)).out, "] 1").size(), cores);
  EXPECT_EQ(Launched::lines(run(plan("echo $OMP_NUM_THREADS", 2 * cores)).out, "] 1").size(),
            2 * cores);
  LaunchPlan p = plan("echo $OMP_NUM_THREADS", 2);
  p.environment.push_back("OMP_NUM_THREADS=77");
  EXPECT_EQ(Launched::lines(run(p).out, "] 77").size(), 2);
}

TEST_F(Launcher, LinesStayWhole) {
  // Every rank writes its lines in two pieces, many at a time.
  const Launched done =
      run(plan("i=0; while [ $i -lt 200 ]; do printf 'begin %s ' $i; printf 'of %s end\\n' $RANK; "
               "printf 'e%s ' $i >&2; echo \"r$RANK\" >&2; i=$((i+1)); done",
               4));
  for (int r = 0; r < 4; ++r) {
    for (int i = 0; i < 200; ++i) {
      const std::string line = cat("[", r, "] begin ", i, " of ", r, " end\n");
      ASSERT_NE(("\n" + done.out).find("\n" + line), std::string::npos) << line;
      const std::string error = cat("[", r, "] e", i, " r", r, "\n");
      ASSERT_NE(("\n" + done.err).find("\n" + error), std::string::npos) << error;
    }
  }
  EXPECT_EQ(split(done.out, '\n').size(), 801);
}

TEST_F(Launcher, ProgressAndUnfinishedLines) {
  const Launched done =
      run(plan("printf '\\rstep 1\\rstep 2\\rstep 3\\ndone\\r\\n'; printf 'no end'", 1));
  EXPECT_EQ(done.out, "[0] step 1\n[0] step 3\n[0] done\n[0] no end\n");
}

TEST_F(Launcher, InputIsEmptyAndSignalsAreAsUsual) {
  const Launched done = run(plan("cat; echo eof; kill -PIPE $$; echo survived", 1));
  EXPECT_EQ(done.out, "[0] eof\n");
  EXPECT_EQ(done.code, 128 + SIGPIPE);
}

TEST_F(Launcher, OutputOfWhatARankLeavesBehindDoesNotHoldTheLauncher) {
  const Launched done = run(plan("sleep 30 & echo $! > $F/left$RANK; echo out", 1));
  EXPECT_EQ(done.code, 0);
  EXPECT_LT(done.seconds, 20);
  const int left = std::stoi(file("left0"));
  for (int i = 0; i < 200 && ::kill(left, 0) == 0; ++i) ::usleep(10000);
  EXPECT_NE(::kill(left, 0), 0) << "the rank's own child lives";
}

// ---- failures
// -------------------------------------------------------------------------------------

class LauncherCode : public Launcher, public ::testing::WithParamInterface<int> {};

TEST_P(LauncherCode, IsTheFailingRanks) {
  const int code = GetParam();
  const Launched done = run(plan(
      cat("if [ $RANK = 1 ]; then echo last words >&2; exit ", code, "; fi; exec sleep 30"), 3));
  EXPECT_EQ(done.code, code);
  EXPECT_LT(done.seconds, 20);  // the others went with SIGTERM
  char host[256];
  ::gethostname(host, sizeof host);
  EXPECT_EQ(Launched::lines(done.err, cat("launch: rank 1 (local rank 1 of host ", host)).size(), 2)
      << done.err;
  EXPECT_NE(done.err.find(cat("ended with exit code ", code)), std::string::npos) << done.err;
  EXPECT_NE(done.err.find("its last lines:\n    last words\n"), std::string::npos) << done.err;
  EXPECT_EQ(done.err.find("rank 0 (local"), std::string::npos) << done.err;
}
INSTANTIATE_TEST_SUITE_P(All, LauncherCode, ::testing::Values(1, 2, 3, 4, 5, 6, 7, 255));

TEST_F(Launcher, KilledRankIsNamedWithItsSignal) {
  const Launched done = run(plan("[ $RANK = 0 ] && kill -9 $$; exec sleep 30", 2));
  EXPECT_EQ(done.code, 137);
  EXPECT_NE(done.err.find("rank 0 "), std::string::npos);
  EXPECT_NE(done.err.find("was killed by SIGKILL (out of memory?)"), std::string::npos) << done.err;
  EXPECT_EQ(run(plan("kill -SEGV $$", 1)).code, 139);
}

TEST_F(Launcher, SuccessOfSomeDoesNotEndTheOthers) {
  const Launched done = run(plan("[ $RANK = 0 ] && exit 0; sleep 1; echo late", 2));
  EXPECT_EQ(done.code, 0);
  EXPECT_EQ(done.out, "[1] late\n");
}

TEST_F(Launcher, TheCauseIsNamedAndNotTheRankThatNoticed) {
  // Rank 0 sees its peer go and ends first, with exit code 5; the peer takes longer to die of what
  // it had.
  const Launched done =
      run(plan("[ $RANK = 0 ] && { while [ ! -e $F/up ]; do sleep 0.01; done; exit 5; }; "
               "trap : TERM; touch $F/up; sleep 0.5; sleep 0.3; echo bad sample >&2; exit 3",
               2));
  EXPECT_EQ(done.code, 3);
  EXPECT_NE(done.err.find("bad sample\n"), std::string::npos);
  EXPECT_EQ(Launched::lines(done.err, "rank 1 (local").size(), 1) << done.err;
}

// Of several ranks that end for the same reason one says it, and need not be the first to end.
TEST_F(Launcher, OfEqualFailuresTheOneWithWordsIsTheCause) {
  for (const int code : {4, 5}) {
    const Launched done =
        run(plan(cat("[ $RANK = 0 ] && { while [ ! -e $F/up", code,
                     " ]; do sleep 0.01; done; exit ", code, "; }; trap : TERM; touch $F/up", code,
                     "; sleep 0.5; sleep 0.3; echo the file is cut >&2; exit ", code),
                 2));
    EXPECT_EQ(done.code, code);
    EXPECT_EQ(Launched::lines(done.err, "    the file is cut").size(), 1) << done.err;
    EXPECT_EQ(Launched::lines(done.err, "wrote nothing here").size(), 0) << done.err;
  }
}

TEST_F(Launcher, StubbornRanksAreKilledAfterTheGrace) {
  LaunchPlan p = plan(
      "[ $RANK = 0 ] && { while [ ! -e $F/up ]; do sleep 0.01; done; exit 4; }; "
      "trap '' TERM; touch $F/up; sleep 30; sleep 30",
      2);
  p.grace_s = 1;
  const Launched done = run(p);
  EXPECT_EQ(done.code, 4);
  EXPECT_GT(done.seconds, 1);
  EXPECT_LT(done.seconds, 20);
  EXPECT_NE(done.err.find("did not end within 1.0s"), std::string::npos) << done.err;
}

TEST_F(Launcher, GraceLetsARankFinish) {
  const Launched done =
      run(plan("[ $RANK = 0 ] && { while [ ! -e $F/up ]; do sleep 0.01; done; exit 1; }; "
               "trap 'sleep 1; echo saved; exit 143' TERM; touch $F/up; "
               "while :; do sleep 0.1; done",
               2));
  EXPECT_EQ(done.code, 1);
  EXPECT_EQ(done.out, "[1] saved\n");
  EXPECT_EQ(done.err.find("killing"), std::string::npos) << done.err;
}

TEST_F(Launcher, CommandThatCannotBeRun) {
  LaunchPlan p = plan("", 2);
  p.command = {"/no/such/program"};
  try {
    run(p);
    FAIL();
  } catch (const InternalError& e) {
    EXPECT_STREQ(e.what(), "cannot run /no/such/program: No such file or directory");
  }
}

// ---- signals
// --------------------------------------------------------------------------------------

class LauncherSignal : public Launcher,
                       public ::testing::WithParamInterface<std::pair<int, const char*>> {};

TEST_P(LauncherSignal, IsPassedOnAndTheRanksCodeCounts) {
  const auto [sent, trapped] = GetParam();
  const int code = std::string(trapped) == "INT" ? 130 : std::string(trapped) == "USR1" ? 138 : 143;
  LaunchPlan p =
      plan(cat("trap 'sleep 0.$RANK; echo saved; exit ", code, "' ", trapped,
               "; touch $F/up$RANK; until [ -e $F/up0 ] && [ -e $F/up1 ] && [ -e $F/up2 ]; "
               "do sleep 0.01; done; touch $F/all; while :; do sleep 0.05; done"),
           3);
  p.restarts = 3;
  p.grace_s = 0;  // is for failures, not for saves
  std::thread killer = signal_when("all", sent);
  const Launched done = run(p);
  killer.join();
  EXPECT_EQ(done.code, code);
  EXPECT_EQ(Launched::lines(done.out, "saved").size(), 3) << done.out << done.err;
  EXPECT_EQ(done.err.find("exit code"), std::string::npos) << done.err;
}
INSTANTIATE_TEST_SUITE_P(All, LauncherSignal,
                         ::testing::Values(std::pair(SIGTERM, "TERM"), std::pair(SIGINT, "INT"),
                                           std::pair(SIGUSR1, "USR1"), std::pair(SIGHUP, "TERM")));

TEST_F(Launcher, SignalBeforeARankCanCatchIt) {
  LaunchPlan p = plan("touch $F/up; exec sleep 30", 1);
  p.restarts = 3;
  std::thread killer = signal_when("up", SIGTERM);
  const Launched done = run(p);
  killer.join();
  EXPECT_EQ(done.code, 143);
}

TEST_F(Launcher, FailureAfterASignalIsAFailureWithoutRestart) {
  LaunchPlan p = plan("trap 'exit 5' TERM; touch $F/up; while :; do sleep 0.05; done", 1);
  p.restarts = 3;
  std::thread killer = signal_when("up", SIGTERM);
  const Launched done = run(p);
  killer.join();
  EXPECT_EQ(done.code, 5);
  EXPECT_NE(done.err.find("a signal asked to stop"), std::string::npos) << done.err;
}

TEST_F(Launcher, RanksThatStopOfThemselvesAreNoFailure) {
  // Each got the signal from elsewhere (a scheduler signals all processes): no second SIGTERM
  // comes.
  LaunchPlan p = plan(
      "trap 'touch $F/second' TERM; touch $F/up$RANK; while [ ! -e $F/up1 ]; do sleep 0.01; done; "
      "[ $RANK = 0 ] && exit 143; sleep 0.7; exit 143",
      2);
  p.restarts = 2;
  const Launched done = run(p);
  EXPECT_EQ(done.code, 143);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/second"));
  EXPECT_EQ(done.err, "");
}

TEST_F(Launcher, OldHandlersComeBack) {
  static volatile sig_atomic_t seen = 0;
  seen = 0;
  struct sigaction mine {
  }, old{};
  mine.sa_handler = [](int) { seen = 1; };
  ::sigaction(SIGTERM, &mine, &old);
  run(plan("exit 0", 1));
  ::raise(SIGTERM);
  ::sigaction(SIGTERM, &old, nullptr);
  EXPECT_EQ(seen, 1);
}

// ---- restarts
// -------------------------------------------------------------------------------------

// Every rank writes which start it is; rank 1 fails in the first `failures` starts, once rank 0 has
// written too.
std::string failing_script(const std::string& how, int failures) {
  return cat(
      "echo start $TORCHELASTIC_RESTART_COUNT of $WORLD_SIZE; "
      "echo x >> $F/starts$RANK; "
      "[ $RANK = 1 ] && until [ $(cat $F/starts0 2>/dev/null | wc -c) -ge "
      "$((2 * TORCHELASTIC_RESTART_COUNT + 2)) ]; do sleep 0.01; done; "
      "[ $RANK = 1 ] && [ $TORCHELASTIC_RESTART_COUNT -lt ",
      failures, " ] && ", how, "; [ $TORCHELASTIC_RESTART_COUNT -lt ", failures,
      " ] && exec sleep 30; exit 0");
}

class LauncherRestart
    : public Launcher,
      public ::testing::WithParamInterface<std::pair<const char*, std::pair<bool, int>>> {};

TEST_P(LauncherRestart, OnlyAfterWhatMayPass) {
  const auto [how, expected] = GetParam();
  const auto [restarts, code] = expected;
  LaunchPlan p = plan(failing_script(how, 1), 2);
  p.restarts = 2;
  const Launched done = run(p);
  EXPECT_EQ(done.code, restarts ? 0 : code) << done.err;
  EXPECT_EQ(file("starts0").size(), restarts ? 4 : 2);
  if (restarts) {
    EXPECT_NE(done.err.find("restart 1 of 2\n"), std::string::npos) << done.err;
    EXPECT_NE(done.out.find("[1] start 1 of 2\n"), std::string::npos) << done.out;
  } else {
    EXPECT_NE(done.err.find(cat("not started again: exit code ", code)), std::string::npos);
  }
}
INSTANTIATE_TEST_SUITE_P(All, LauncherRestart,
                         ::testing::Values(std::pair("exit 1", std::pair(true, 1)),
                                           std::pair("exit 5", std::pair(true, 5)),
                                           std::pair("kill -9 $$", std::pair(true, 137)),
                                           std::pair("kill -SEGV $$", std::pair(true, 139)),
                                           std::pair("kill -ABRT $$", std::pair(true, 134)),
                                           std::pair("exit 2", std::pair(false, 2)),
                                           std::pair("exit 3", std::pair(false, 3)),
                                           std::pair("exit 4", std::pair(false, 4)),
                                           std::pair("exit 6", std::pair(false, 6)),
                                           std::pair("exit 7", std::pair(false, 7))));

TEST_F(Launcher, RestartsAreCounted) {
  LaunchPlan p = plan(failing_script("exit 5", 9), 2);
  p.restarts = 3;
  const Launched done = run(p);
  EXPECT_EQ(done.code, 5);
  EXPECT_EQ(file("starts1").size(), 8);
  EXPECT_NE(done.err.find("restart 3 of 3"), std::string::npos);
  EXPECT_NE(done.err.find("all 3 restarts (--restarts) are used up"), std::string::npos);
  // Without --restarts nothing is said about them.
  EXPECT_EQ(run(plan("exit 1", 1)).err.find("restart"), std::string::npos);
}

TEST_F(Launcher, EveryStartHasItsOwnPort) {
  LaunchPlan p =
      plan("echo $MASTER_PORT >> $F/ports; [ $TORCHELASTIC_RESTART_COUNT = 2 ] || exit 1", 1);
  p.restarts = 2;
  EXPECT_EQ(run(p).code, 0);
  EXPECT_EQ(split(file("ports"), '\n').size(), 4);
}

TEST_F(Launcher, SignalBetweenStartsStops) {
  LaunchPlan p = plan("touch $F/failed; exit 1", 1);
  p.restarts = 1;
  p.restart_delay_s = 30;
  std::thread killer = signal_when("failed", SIGUSR2);  // ignored: only to wait for the file
  struct sigaction ignore {
  }, old{};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGUSR2, &ignore, &old);
  std::thread term([&] {
    killer.join();
    ::usleep(500000);
    ::kill(::getpid(), SIGTERM);
  });
  const Launched done = run(p);
  term.join();
  ::sigaction(SIGUSR2, &old, nullptr);
  EXPECT_EQ(done.code, 143);
  EXPECT_LT(done.seconds, 20);
}

TEST_F(Launcher, FewerRanksAfterASlotFailedTwice) {
  // GPU 2 is bad: whoever runs on it dies.
  const std::string script =
      "gpu=$LOCAL_RANK; [ -n \"$CUDA_VISIBLE_DEVICES\" ] && "
      "gpu=$(echo $CUDA_VISIBLE_DEVICES | cut -d, -f $((LOCAL_RANK + 1))); "
      "echo world $WORLD_SIZE gpu $gpu; all=$F/all.$MASTER_PORT; echo >> $all; "
      "[ $gpu = 2 ] && until [ $(wc -l < $all) = 4 ]; do sleep 0.01; done && exit 5; "
      "[ $WORLD_SIZE = 4 ] && exec sleep 30; exit 0";
  LaunchPlan p = plan(script, 4);
  p.restarts = 4;
  p.min_nproc = 2;
  const Launched done = run(p);
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(Launched::lines(done.out, "world 4").size(), 8) << done.out;
  EXPECT_EQ(Launched::lines(done.out, "world 2").size(), 2) << done.out;  // 3 does not divide 4
  EXPECT_NE(done.out.find("[1] world 2 gpu 1\n"), std::string::npos) << done.out;
  EXPECT_NE(done.err.find("failed 2 times and is left out: 2 ranks"), std::string::npos);

  p = plan(script, 4);  // without --min-nproc it stays
  p.restarts = 3;
  EXPECT_EQ(run(p).code, 5);
  p.min_nproc = 3;  // no divisor of 4 is left
  EXPECT_EQ(run(p).code, 5);
}

TEST_F(Launcher, LeftOutGpusAreNamedAsTheUserDoes) {
  LaunchPlan p = plan(
      "echo $WORLD_SIZE: $CUDA_VISIBLE_DEVICES; [ $WORLD_SIZE = 3 ] && [ $RANK = 0 ] && exit 1; "
      "[ $WORLD_SIZE = 3 ] && exec sleep 30; exit 0",
      3);
  p.environment.push_back("CUDA_VISIBLE_DEVICES=7,5,GPU-ab12");
  p.restarts = 3;
  p.min_nproc = 1;
  const Launched done = run(p);
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_NE(done.out.find("[0] 3: 7,5,GPU-ab12\n"), std::string::npos) << done.out;
  EXPECT_NE(done.out.find("[0] 1: 5\n"), std::string::npos) << done.out;
}

// ---- the launcher's own end
// -----------------------------------------------------------------------

TEST_F(Launcher, KilledLauncherTakesItsRanksAlong) {
  const int launcher = ::fork();
  if (launcher == 0) {
    LaunchPlan p = plan("trap '' TERM INT HUP; echo $$ > $F/pid$RANK; exec sleep 60", 2);
    p.write = [](int, std::string_view) {};
    ::_exit(run_launch(p));
  }
  std::vector<int> pids;
  for (const char* name : {"pid0", "pid1"}) {
    for (int i = 0; i < 1000 && file(name).empty(); ++i) ::usleep(10000);
    pids.push_back(std::stoi(file(name)));
    EXPECT_EQ(::kill(pids.back(), 0), 0);
  }
  ::kill(launcher, SIGKILL);
  ::waitpid(launcher, nullptr, 0);
  for (const int pid : pids) {
    bool gone = false;
    for (int i = 0; i < 500 && !gone; ++i) {
      ::usleep(10000);
      std::ifstream stat(cat("/proc/", pid, "/stat"));  // a zombie is as good as gone
      const std::string text{std::istreambuf_iterator<char>(stat), {}};
      gone = text.empty() || text.find(") Z ") != std::string::npos;
    }
    EXPECT_TRUE(gone) << pid;
  }
}

TEST_F(Launcher, ImpossiblePlansAreConfigErrors) {
  const auto error = [&](const std::function<void(LaunchPlan&)>& change) -> std::string {
    LaunchPlan p = plan("exit 0", 2);
    change(p);
    try {
      run(p);
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_NE(error([](LaunchPlan& p) { p.command.clear(); }).find("nothing to run"),
            std::string::npos);
  EXPECT_NE(error([](LaunchPlan& p) { p.nproc = 0; }).find("--nproc is 0"), std::string::npos);
  EXPECT_NE(error([](LaunchPlan& p) { p.nproc = 100000; }).find("--nproc is 100000"),
            std::string::npos);
  EXPECT_NE(error([](LaunchPlan& p) { p.min_nproc = 3; }).find("--min-nproc is 3"),
            std::string::npos);
  EXPECT_NE(error([](LaunchPlan& p) { p.restarts = -1; }).find("--restarts is -1"),
            std::string::npos);
  EXPECT_NE(error([](LaunchPlan& p) { p.node = 1; }).find("--node-rank is 1"), std::string::npos);
  for (const char* master :
       {"", "gpu1", ":29400", "gpu1:", "gpu1:x", "gpu1:0", "gpu1:65536", "a:999999"}) {
    const std::string text = error([&](LaunchPlan& p) { p.nodes = 2, p.master = master; });
    EXPECT_NE(text.find(cat("--master is '", master, "'")), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace mgm
