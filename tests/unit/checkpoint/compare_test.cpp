#include "checkpoint/compare.h"

#include <cmath>

#include "small_state.h"
#include "unit/checkpoint/files.h"

namespace mgm {
namespace {

class CompareTest : public FilesTest {
 protected:
  TrainCheckpoint saved(int64_t step, const std::function<void(SmallState&)>& change = {}) {
    SmallState state;
    state.fill(1);
    if (change) change(state);
    // Runs of their own: a run that goes back to an earlier step removes the later one.
    const fs::path run = folder_ / cat("run_", runs_++);
    save_small(run, state, ranks_, step);
    return TrainCheckpoint(train_checkpoint_dir(run, step));
  }
  int runs_ = 0;
  Ranks ranks_ = local_ranks({});
};

TEST_F(CompareTest, EqualToTheBitWithNaNsAndInfinities) {
  const CheckpointDifference found = compare_checkpoints(saved(1), saved(2));
  EXPECT_EQ(found.equal_parameters, 5);
  EXPECT_TRUE(found.parameters.empty());
  EXPECT_EQ(found.frozen, std::vector<std::string>{"blocks.0"}) << "its hash names the step";
  EXPECT_TRUE(compare_checkpoints(saved(1), saved(1)).equal());
}

TEST_F(CompareTest, DifferencesOfOneMoment) {
  const auto change = [](SmallState& state) {
    state.states[0].exp_avg.fill_(1);
    state.states[0].exp_avg_sq.fill_(2);
    state.states[0].exp_avg[4000] = 3;  // blocks.0.bias lies behind the padded weight, at 4096
    state.states[0].exp_avg[4097] = 1.5;
  };
  const auto even = [](SmallState& state) {
    state.states[0].exp_avg.fill_(1);
    state.states[0].exp_avg_sq.fill_(2);
  };
  const CheckpointDifference found = compare_checkpoints(saved(1, even), saved(2, change));
  EXPECT_EQ(found.equal_parameters, 4);
  ASSERT_EQ(found.parameters.size(), 1u);
  const ParameterDifference& bias = found.parameters[0];
  EXPECT_EQ(bias.name, "blocks.0.bias");
  EXPECT_TRUE(bias.of[0].equal && bias.of[2].equal);
  EXPECT_FALSE(bias.of[1].equal);
  EXPECT_EQ(bias.of[1].max_abs, 0.5);
  EXPECT_NEAR(bias.of[1].relative_l2, 0.5 / std::sqrt(97), 1e-12);
}

TEST_F(CompareTest, SignOfZeroAndNaNAreDifferences) {
  const auto zeros = [](SmallState& state) { state.states[0].exp_avg.zero_(); };
  const auto other = [](SmallState& state) {
    state.states[0].exp_avg.zero_();
    state.states[0].exp_avg[0] = -0.0f;
    state.states[0].exp_avg[4096] = std::nanf("");
  };
  const CheckpointDifference found = compare_checkpoints(saved(1, zeros), saved(2, other));
  ASSERT_EQ(found.parameters.size(), 2u);
  EXPECT_TRUE(std::isnan(found.parameters[0].of[1].max_abs));  // blocks.0.bias
  EXPECT_FALSE(found.parameters[1].of[1].equal);               // blocks.0.weight
  EXPECT_EQ(found.parameters[1].of[1].max_abs, 0);
}

TEST_F(CompareTest, ParametersOfOneSide) {
  const TrainCheckpoint a = saved(1);
  const TrainCheckpoint b = saved(2, [](SmallState& state) {
    state.params[0]->spec.shape = {41, 97};
    state.params[3]->spec.name = "head.gewicht";
  });
  const CheckpointDifference found = compare_checkpoints(a, b);
  EXPECT_EQ(found.only_a, (std::vector<std::string>{"blocks.0.weight", "head.weight"}));
  EXPECT_EQ(found.only_b, (std::vector<std::string>{"blocks.0.weight", "head.gewicht"}));
  EXPECT_FALSE(found.equal());
}

}  // namespace
}  // namespace mgm
