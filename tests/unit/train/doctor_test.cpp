// The checks of `mgm doctor` on facts that are made up: hosts, GPUs, clocks, links and ranks that
// no test machine has.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>

#include "train/doctor/compare.h"
#include "train/doctor/gathering.h"
#include "train/doctor/host_checks.h"
#include "train/doctor/link_checks.h"

namespace mgm {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

const Finding* find(const Findings& findings, const std::string& words) {
  for (const Finding& f : findings) {
    if (f.text.find(words) != f.text.npos) return &f;
  }
  return nullptr;
}

void expect_finding(const Findings& findings, Level level, const std::string& words) {
  const Finding* f = find(findings, words);
  std::string all;
  for (const Finding& other : findings) all += other.text + "\n";
  ASSERT_NE(f, nullptr) << "no '" << words << "' in\n" << all;
  EXPECT_EQ(f->level, level) << f->text;
  EXPECT_EQ(f->advice.empty(), level == Level::kOk) << f->text;
}

// ---- the list -----------------------------------------------------------------------------------

TEST(DoctorList, WorstFirstSameFindingsMergedRanksNamed) {
  const Finding bad = failed("ranks", ExitCode::kDist, "far", ""),
                worse = failed("config", ExitCode::kConfig, "wrong", "correct it"),
                odd = warned("gpu", "odd", "look");
  const std::map<int, Findings> found = {{0, {passed("data", "fine"), bad}},
                                         {1, {passed("data", "fine"), odd}},
                                         {2, {passed("data", "fine"), odd, worse}},
                                         {3, {passed("data", "fine"), odd}}};
  const std::string list = format_findings(found, 4);
  EXPECT_EQ(list,
            "FAIL  config      wrong  [rank 2]\n"
            "                  -> correct it\n"
            "FAIL  ranks       far  [rank 0]\n"
            "warn  gpu         odd  [ranks 1-3]\n"
            "                  -> look\n"
            "ok    data        fine\n"
            "2 failures, 1 warning, 1 ok\n");
  EXPECT_EQ(outcome_of(found), ExitCode::kConfig);
  EXPECT_EQ(outcome_of({{1, {odd}}}), ExitCode::kOk);
}

TEST(DoctorList, CodesComeInTheOrderOfTheDocs) {
  const auto of = [](ExitCode a, ExitCode b) {
    return outcome_of({{0, {failed("x", a, "a", ""), failed("y", b, "b", "")}}});
  };
  EXPECT_EQ(of(ExitCode::kInternal, ExitCode::kDist), ExitCode::kDist);
  EXPECT_EQ(of(ExitCode::kDist, ExitCode::kCheckpoint), ExitCode::kCheckpoint);
  EXPECT_EQ(of(ExitCode::kCheckpoint, ExitCode::kData), ExitCode::kData);
  EXPECT_EQ(of(ExitCode::kData, ExitCode::kConfig), ExitCode::kConfig);
}

TEST(DoctorList, FindingsSurviveTheStore) {
  const Findings all = {passed("a", "b"), warned("c", "d \"e\"\n", "f"),
                        failed("g", ExitCode::kData, "h", "i")};
  EXPECT_EQ(findings_from_json(parse_json(to_json(all).dump(), "test")), all);
  EXPECT_EQ(name_ranks({0, 1, 2, 5, 7, 8}), "ranks 0-2, 5, 7-8");
  EXPECT_EQ(name_ranks({4}), "rank 4");
}

// ---- hosts --------------------------------------------------------------------------------------

fs::path fake_root(const std::string& name, const std::map<std::string, std::string>& files) {
  const fs::path root = fs::path(::testing::TempDir()) / name;
  fs::remove_all(root);
  for (const auto& [path, text] : files) {
    make_dirs((root / path).parent_path());
    write_file_atomic(root / path, text);
  }
  return root;
}

const char* const kMeminfo = "MemTotal:  1000000 kB\nMemFree: 1 kB\nMemAvailable:  800000 kB\n";

TEST(DoctorHost, LimitsOfCgroupVersion2) {
  const HostFacts host =
      read_host_facts(fake_root("doctor_v2", {{"proc/meminfo", kMeminfo},
                                              {"proc/self/cgroup", "0::/job/step\n"},
                                              {"sys/fs/cgroup/job/memory.max", "500000000\n"},
                                              {"sys/fs/cgroup/job/memory.current", "100000000\n"},
                                              {"sys/fs/cgroup/job/step/memory.max", "max\n"},
                                              {"sys/fs/cgroup/job/cpu.max", "100000 100000\n"}}));
  EXPECT_EQ(host.memory_total, 1000000 * 1024);
  EXPECT_EQ(host.memory_available, 800000 * 1024);
  EXPECT_EQ(host.memory_free, 400000000);
  EXPECT_EQ(host.cores, 1);
}

TEST(DoctorHost, DriverOfTheKernel) {
  const auto driver = [](const std::string& line) {
    return read_host_facts(fake_root("doctor_driver", {{"proc/driver/nvidia/version", line}}))
        .gpu_driver;
  };
  EXPECT_EQ(driver("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 "
                   "UTC 2024\nGCC version:  gcc version 12.2.0\n"),
            "550.54.15");
  EXPECT_EQ(driver("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release "
                   "Build  (dvs-builder@U22)\n"),
            "580.65.06");
  EXPECT_EQ(driver("\n"), "");
  EXPECT_EQ(read_host_facts(fake_root("doctor_none", {{"proc/meminfo", kMeminfo}})).gpu_driver, "");
}

TEST(DoctorHost, LimitsOfCgroupVersion1) {
  const HostFacts host = read_host_facts(
      fake_root("doctor_v1", {{"proc/meminfo", kMeminfo},
                              {"proc/self/cgroup", "5:cpu,cpuacct:/a\n7:memory:/a/b\n"},
                              {"sys/fs/cgroup/memory/a/memory.limit_in_bytes", "300000000\n"},
                              {"sys/fs/cgroup/memory/a/memory.usage_in_bytes", "50000000\n"},
                              {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "100000\n"},
                              {"sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"}}));
  EXPECT_EQ(host.memory_free, 250000000);
  EXPECT_EQ(host.cores, 1);
}

HostFacts good_host() {
  HostFacts host;
  host.name = "node1";
  host.memory_total = 1000 * kGiB;
  host.memory_available = host.memory_free = 900 * kGiB;
  host.cores = 64;
  host.open_files = 65536;
  return host;
}

Needs some_needs() {
  Needs needs;
  needs.checkpoint = 80 * kGiB;
  needs.checkpoints = 3;
  needs.state = 20 * kGiB;
  needs.copy = 10 * kGiB;
  needs.samples = 1 * kGiB;
  needs.pinned = 30 * kGiB;
  needs.device = 60 * kGiB;
  return needs;
}

LaunchEnv eight_ranks() {
  LaunchEnv env;
  env.world = env.local_world = 8;
  return env;
}

TEST(DoctorHost, EnoughOfEverything) {
  for (const Finding& f : check_host(good_host(), some_needs(), RunConfig(), eight_ranks())) {
    EXPECT_EQ(f.level, Level::kOk) << f.text;
  }
}

TEST(DoctorHost, MemoryLimitedByACgroupOrTheMachine) {
  HostFacts host = good_host();
  host.memory_free = 100 * kGiB;
  const Findings found = check_host(host, some_needs(), RunConfig(), eight_ranks());
  expect_finding(found, Level::kFail, "8 ranks need 248.00 GiB");
  expect_finding(found, Level::kFail,
                 "100.00 GiB are left below the limit of this process's cgroup");
  host.memory_free = host.memory_available = 260 * kGiB;
  expect_finding(check_host(host, some_needs(), RunConfig(), eight_ranks()), Level::kWarn,
                 "260.00 GiB are free of 1000.00 GiB");
}

TEST(DoctorHost, UlimitsAndCores) {
  HostFacts host = good_host();
  host.open_files = 256;
  host.locked_memory = 65536;
  host.cores = 12;
  RunConfig config;
  config.train.threads = 4;
  const Findings found = check_host(host, some_needs(), config, eight_ranks());
  expect_finding(found, Level::kFail, "ulimit -n is 256");
  expect_finding(found, Level::kWarn, "ulimit -l is 64.00 KiB");
  expect_finding(found, Level::kWarn, "4 data.workers x 8 ranks = 32 threads on 12 cores");
  expect_finding(found, Level::kWarn, "train.threads 4 x 8 ranks on 12 cores");
}

TEST(DoctorHost, RoomForCheckpoints) {
  const Needs needs = some_needs();  // 240 GiB
  EXPECT_EQ(check_disk("run", 300 * kGiB, 0, needs).level, Level::kOk);
  EXPECT_EQ(check_disk("run", 250 * kGiB, 0, needs).level, Level::kWarn);
  EXPECT_EQ(check_disk("run", 239 * kGiB, 0, needs).level, Level::kFail);
  EXPECT_EQ(check_disk("run", 150 * kGiB, 160 * kGiB, needs).level, Level::kOk);  // are replaced
  EXPECT_EQ(check_disk("run", 0, 1000 * kGiB, needs).level, Level::kWarn);
}

TEST(DoctorHost, OnlyCheckpointsThatAreWrittenNeedRoom) {
  Needs needs = some_needs();
  needs.checkpoints = 1;
  EXPECT_EQ(check_disk("run", 100 * kGiB, 0, needs).level, Level::kOk);
  const Finding tight = check_disk("run", 79 * kGiB, 0, needs);
  EXPECT_EQ(tight.level, Level::kFail);
  EXPECT_NE(tight.text.find("the checkpoint at the end needs 80.00 GiB; the disk has 79.00 GiB"),
            std::string::npos)
      << tight.text;
  needs.checkpoints = 0;
  const Finding off = check_disk("run", 1 * kGiB, 0, needs);
  EXPECT_EQ(off.level, Level::kWarn);
  EXPECT_NE(off.text.find("checkpoints are off"), std::string::npos) << off.text;
}

// ---- GPUs ---------------------------------------------------------------------------------------

GpuFacts good_gpu() {
  GpuFacts gpu;
  gpu.built = true;
  gpu.visible = 8;
  gpu.ordinal = 3;
  gpu.name = "NVIDIA H100";
  gpu.major = 9;
  gpu.driver = 13010;
  gpu.runtime = 13000;
  gpu.nccl = 22809;
  gpu.memory_total = 80 * kGiB;
  gpu.memory_free = 79 * kGiB;
  return gpu;
}

DeviceSetup bf16_gpu() {
  DeviceSetup device;
  device.device = at::Device(at::kCUDA, 3);
  device.dtype = at::kBFloat16;
  return device;
}

TEST(DoctorGpu, VersionsAndFaults) {
  const Findings good = check_gpu(good_gpu(), some_needs(), RunConfig(), bf16_gpu());
  expect_finding(good, Level::kOk, "NVIDIA H100, CUDA driver 13.1, runtime 13.0, NCCL 2.28.9");
  for (const Finding& f : good) EXPECT_EQ(f.level, Level::kOk) << f.text;

  GpuFacts gpu = good_gpu();
  gpu.major = 7;
  gpu.driver = 12040;
  gpu.memory_free = 50 * kGiB;
  const Findings bad = check_gpu(gpu, some_needs(), RunConfig(), bf16_gpu());
  expect_finding(bad, Level::kFail, "has no bfloat16");
  expect_finding(bad, Level::kFail, "the driver knows CUDA 12, this build uses CUDA 13");
  expect_finding(bad, Level::kWarn, "30.00 GiB of 80.00 GiB of the GPU are in use already");
  expect_finding(bad, Level::kFail, "the plan needs 60.00 GiB, 50.00 GiB of 80.00 GiB are free");
  gpu.memory_free = 62 * kGiB;
  expect_finding(check_gpu(gpu, some_needs(), RunConfig(), bf16_gpu()), Level::kWarn,
                 "the plan needs");
}

TEST(DoctorGpu, NoneIsAWarningUnlessTheCpuIsWanted) {
  RunConfig config;
  expect_finding(check_gpu({}, some_needs(), config, {}), Level::kWarn, "no GPU");
  config.train.device = DeviceKind::kCpu;
  expect_finding(check_gpu({}, some_needs(), config, {}), Level::kOk, "train.device: cpu");
}

// ---- ranks --------------------------------------------------------------------------------------

std::vector<RankFacts> four_ranks() {
  std::vector<RankFacts> out;
  for (int r = 0; r < 4; ++r) {
    RankFacts facts;
    facts.rank = r;
    facts.local_rank = r % 2;
    facts.node = r / 2;
    facts.host = facts.host_id = cat("node", r / 2);
    facts.gpu = cat("GPU-", r);
    facts.shared = {{"the program", "aa"},
                    {"the CUDA driver", "13.0"},
                    {"the data set", "d1", ExitCode::kData}};
    out.push_back(facts);
  }
  return out;
}

TEST(DoctorRanks, AgreeAndSurviveTheStore) {
  std::vector<RankFacts> ranks;
  for (const RankFacts& facts : four_ranks()) {
    ranks.push_back(rank_facts(parse_json(to_json(facts).dump(), "test")));
  }
  const Findings found = compare_ranks(ranks, {});
  ASSERT_EQ(found.size(), 1u);
  expect_finding(found, Level::kOk, "all agree on the program, the CUDA driver, the data set");
}

TEST(DoctorRanks, TheOneThatDiffersFromTheMajorityIsNamed) {
  for (int odd = 0; odd < 4; ++odd) {
    std::vector<RankFacts> ranks = four_ranks();
    ranks[static_cast<size_t>(odd)].shared[1].value = "12.8";
    const Findings found = compare_ranks(ranks, {});
    ASSERT_EQ(found.size(), 1u) << odd;
    expect_finding(found, Level::kFail,
                   cat("rank ", odd, " on node", odd / 2, ": the CUDA driver differs from rank ",
                       odd == 0 ? 1 : 0, "'s: 12.8 instead of 13.0"));
    EXPECT_EQ(found[0].kind, ExitCode::kDist);
  }
}

TEST(DoctorRanks, AnUnknownValueIsNoDifferenceAndATieGoesToTheLowestRank) {
  std::vector<RankFacts> ranks = four_ranks();
  ranks[2].shared[2].value = "";
  expect_finding(compare_ranks(ranks, {}), Level::kOk, "all agree");
  ranks = four_ranks();
  ranks.resize(2);
  ranks[0].shared[2].value = "d9";
  const Findings found = compare_ranks(ranks, {});
  expect_finding(found, Level::kFail,
                 "rank 1 on node0: the data set differs from rank 0's: d1 instead of d9");
  EXPECT_EQ(found[0].kind, ExitCode::kData);
}

TEST(DoctorRanks, OneGpuOrOneLocalRankForTwo) {
  std::vector<RankFacts> ranks = four_ranks();
  ranks[3].gpu = ranks[2].gpu;
  expect_finding(compare_places(ranks), Level::kFail,
                 "rank 2 on node1 and rank 3 on node1 are on one GPU: GPU-2");
  ranks = four_ranks();
  ranks[1].local_rank = 0;
  const Findings found = compare_places(ranks);
  ASSERT_EQ(found.size(), 1u);  // rank 2 has local rank 0 too, on another host
  expect_finding(found, Level::kFail,
                 "rank 0 on node0 and rank 1 on node0 have the same local rank: 0");
  ranks = four_ranks();
  for (RankFacts& facts : ranks) facts.gpu = "";  // on the CPU
  for (RankFacts& facts : ranks) facts.host_id = "one host with two nodes of a scheduler";
  EXPECT_TRUE(compare_places(ranks).empty());
}

TEST(DoctorRanks, KeysOfAConfigThatDiffer) {
  EXPECT_EQ(config_difference("a: 1\nb: x: y\nc: 2\n", "a: 1\nb: x: z\nd: 3\n"),
            "b: x: z instead of x: y; c: (absent) instead of 2; d: 3 instead of (absent)");
}

TEST(DoctorRanks, Clocks) {
  // Asked at 100; answers were there at 101.
  EXPECT_TRUE(compare_clocks({100.5, 95.5, 105.5}, 100, {101, 101, 101}).empty());
  const Findings found = compare_clocks({100.5, 90, 4000}, 100, {101, 101, 101});
  ASSERT_EQ(found.size(), 2u);
  expect_finding(found, Level::kWarn, "the clock of rank 1 is at least 10 s behind");
  expect_finding(found, Level::kWarn, "the clock of rank 2 is at least 3899 s ahead of");
}

// ---- links --------------------------------------------------------------------------------------

TEST(DoctorLinks, TheSlowestRankIsNamed) {
  const LinkExpectation expected = expected_link(bf16_gpu(), 1, 0);
  EXPECT_EQ(check_link_rates({40, 38, 41}, expected).level, Level::kOk);
  const Finding slow = check_link_rates({40, 38, 1.25}, expected);
  expect_finding(
      {slow}, Level::kWarn,
      "1.25 to 40 GB/s from rank to rank (GPUs of one host, expected 15); slowest: rank 2");
  EXPECT_EQ(check_link_rates({40, 38}, expected_link(bf16_gpu(), 2, 39)).level, Level::kWarn);
  EXPECT_LT(expected_link({}, 2, 0).gb_per_s, expected_link(bf16_gpu(), 2, 0).gb_per_s);
}

// An element of what a collective brings, which is wrong; -1: none.
struct Wrong {
  int64_t sum = -1, gather = -1, exchange = -1;
};

// Rank 1 of two, which knows what rank 0 has of the patterns that links are checked with.
class FakeGroup : public ProcessGroup {
 public:
  explicit FakeGroup(const Wrong& wrong) : ProcessGroup("fake", 1, 2, nullptr), wrong_(wrong) {}

 protected:
  Pending do_all_reduce_sum(at::Tensor& tensor) override {
    tensor.mul_(1.5);  // what rank 0 adds is half as much
    return with_wrong(tensor, wrong_.sum);
  }
  Pending do_all_gather(at::Tensor& out, at::Tensor& in) override {
    out.copy_(at::cat({in / 2, in}));
    return with_wrong(out, wrong_.gather);
  }
  Pending do_reduce_scatter_sum(at::Tensor&, at::Tensor&) override { return {}; }
  // Rank 0 sends nothing; what this one sends itself are its last rows.
  Pending do_all_to_all(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& out_rows,
                        std::vector<int64_t>& in_rows) override {
    EXPECT_EQ(out_rows, (std::vector<int64_t>{0, 3}));
    EXPECT_EQ(in_rows, (std::vector<int64_t>{2, 3}));
    out.copy_(in.narrow(0, in_rows[0], in_rows[1]));
    return with_wrong(out, wrong_.exchange);
  }
  Pending do_broadcast(at::Tensor&, int) override { return {}; }
  void do_barrier() override {}

 private:
  static Pending with_wrong(const at::Tensor& tensor, int64_t element) {
    if (element >= 0) tensor.view(-1)[element].add_(1);
    return {};
  }
  Wrong wrong_;
};

Findings reductions_of(const Wrong& wrong) {
  Ranks ranks;
  ranks.topology.world = 2;
  ranks.control = std::make_shared<FakeGroup>(Wrong{});
  ranks.world = std::make_shared<FakeGroup>(wrong);
  return check_reductions(ranks, {});
}

TEST(DoctorLinks, OneWrongElementIsFound) {
  expect_finding(reductions_of({}), Level::kOk, "right sums, gathers and exchanges in 2 groups");
  expect_finding(reductions_of({.sum = 1000}), Level::kFail,
                 "all-reduce in group 'fake' of 2 ranks on cpu: 1 of 1031 values; element 1000");
  expect_finding(reductions_of({.gather = 1031}), Level::kFail,
                 "all-gather in group 'fake' of 2 ranks on cpu: 1 of 2062 values; element 1031");
  expect_finding(reductions_of({.exchange = 2062}), Level::kFail,
                 "all-to-all in group 'fake' of 2 ranks on cpu: 1 of 3093 values; element 2062");
}

// ---- words and files between ranks --------------------------------------------------------------

TEST(DoctorGathering, NamesWhoDoesNotCome) {
  const std::shared_ptr<Store> store = make_memory_store();
  std::thread other([&] {
    Gathering gathering(store, 2, 4);
    EXPECT_TRUE(gathering.gather("a", "two", 5).empty());
    EXPECT_EQ(gathering.share("b", "", 5), "from zero");
  });
  Gathering first(store, 0, 4);
  store->wait({"a/2"}, 5);
  const auto texts = first.gather("a", "zero", 0.3);
  first.share("b", "from zero", 5);
  other.join();
  EXPECT_EQ(texts, (std::vector<std::optional<std::string>>{"zero", {}, "two", {}}));
  try {
    first.gather_all("a", "zero", 0.1);
    FAIL();
  } catch (const DistError& e) {
    EXPECT_NE(std::string(e.what()).find("ranks 1, 3 of 4 did not come to 'a'"), std::string::npos)
        << e.what();
  }
}

TEST(DoctorGathering, AFolderIsSharedOrNot) {
  const fs::path one = fake_root("doctor_one", {{"x", ""}}),
                 two = fake_root("doctor_two", {{"x", ""}});
  {
    const SharedFolderProbe a(one.string(), "n", 0), b(one.string(), "n", 1),
        c(two.string(), "n", 2);
    EXPECT_EQ(a.unseen({0, 1, 2}, 0), std::vector<int>{2});
    EXPECT_TRUE(b.unseen({0}, 0).empty());
    EXPECT_EQ(c.unseen({0}, 0), std::vector<int>{0});
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(one), fs::directory_iterator()), 1);  // x
}

}  // namespace
}  // namespace mgm
