// A step of two ranks over NCCL makes the host wait for the device nowhere.
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "dist/engine_run.h"
#include "gpu/gpu.h"
#include "gpu/no_waits.h"
#include "train/device.h"
#include "train/metrics_drain.h"

namespace mgm {
namespace {

constexpr DistMode kModes[] = {DistMode::kReplicate, DistMode::kZero1, DistMode::kZero2,
                               DistMode::kZero3, DistMode::kHybrid};
constexpr const char *kRank = "MGM_TEST_RANK", *kPort = "MGM_TEST_PORT";
constexpr int kWorld = 2;

// This test as ranks of their own: of threads that share a driver, one that allocates waits for a
// collective of its device, and holds what the other needs to enter it.
void run_test_as_ranks() {
  int port = 0;
  const std::shared_ptr<Store> store = connect_store("127.0.0.1", &port, /*serve=*/true, 60);
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter = cat("--gtest_filter=", test->test_suite_name(), ".", test->name());
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < kWorld; ++rank) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::setenv(kRank, std::to_string(rank).c_str(), 1);
      ::setenv(kPort, std::to_string(port).c_str(), 1);
      ::execl("/proc/self/exe", "test_gpu", filter.c_str(), nullptr);
      ::_exit(127);
    }
    ranks.push_back(child);
  }
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    int status = 0;
    ASSERT_EQ(::waitpid(ranks[rank], &status, 0), ranks[rank]);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "rank " << rank << " ended with status " << status << "; its output is above";
  }
}

Ranks place(const DistConfig& config, int rank) {
  int port = std::stoi(std::getenv(kPort));
  LaunchEnv env;
  env.rank = env.local_rank = rank;
  env.world = env.local_world = kWorld;
  Ranks ranks = place_rank(env, config, connect_store("127.0.0.1", &port, /*serve=*/false, 60));
  RankSettings settings;
  settings.nccl = true;
  settings.device = rank;
  settings.timeout_s = 60;
  connect_groups(ranks, settings);
  return ranks;
}

class StepWaitsGpu : public GpuTest, public testing::WithParamInterface<DistMode> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure() || visible_gpus() >= kWorld) return;
    if (gpu_required()) FAIL() << "MGM_TEST_REQUIRE=gpu, but this host has one GPU only";
    GTEST_SKIP() << "ONE GPU: this test needs two and has shown nothing";
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, StepWaitsGpu, testing::ValuesIn(kModes),
                         [](const auto& test) { return name_of(test.param); });

// What the host does from the batch to the report; the number is read when it has arrived.
TEST_P(StepWaitsGpu, Nowhere) {
  if (!std::getenv(kRank)) return run_test_as_ranks();
  const int rank = std::stoi(std::getenv(kRank));
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(rank));
  use_gpu(device);
  const Scenario scenario;
  RunConfig config = config_of(scenario);
  config.dist.mode = GetParam();
  config.dist.shard_size = GetParam() == DistMode::kHybrid ? kWorld : 0;
  Ranks ranks = place(config.dist, rank);
  TinyModel tiny(config, at::kBFloat16, device, ranks.topology);
  TrainModule module(tiny.config, tiny.model, *tiny.store, make_recompute_runner({}), ranks);
  MetricsDrain drain({}, OnNonFinite::kSkip, [](int64_t) { return std::vector<std::string>(); });
  const auto step = [&](int64_t number) {
    const std::vector<Batch> batches = deal(scenario, tiny.model, config, ranks, number);
    const StepAgreement agreed = agree(ranks, config, batches);
    const StepResult result = module.step(batches, agreed, number, 1e-3);
    StepReport report;
    report.step = number;
    report.num_targets = agreed.targets;
    drain.push(std::move(report), result);
    drain.drain(4);
  };
  for (int64_t number = 1; number <= 3; ++number) step(number);
  {
    const NoWaits no_waits;
    EXPECT_THROW(at::zeros({1}, device).item<float>(), c10::Error) << "nothing would be seen";
    for (int64_t number = 4; number <= 7; ++number) step(number);
  }
  drain.drain(0);
  ranks.shutdown();
}

}  // namespace
}  // namespace mgm
