// A training state without a model: a few parameters in groups of several sizes, whose every
// element, moments included, has a value that tells it from all others.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "base/rng.h"
#include "base/strings.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/train_state.h"

namespace mgm {

// fp32 values of a whole parameter (`kind`: one of kStateKinds); some that arithmetic would lose.
inline at::Tensor small_values(const std::string& kind, const ParamSpec& spec, int64_t seed) {
  at::Tensor out = at::empty(spec.shape, at::kFloat);
  const auto n = static_cast<size_t>(spec.numel());
  auto* data = out.data_ptr<float>();
  fill_uniform(data, n, rng_key(static_cast<uint64_t>(seed), kind + "." + spec.name), 0, -1, 1);
  if (n < 8) return out;
  data[0] = -0.0f;
  data[1] = 1e-45f;  // the smallest number above zero
  data[2] = -INFINITY;
  data[3] = std::nanf("77");
  return out;
}

struct SmallState {
  explicit SmallState(const Topology& topology = {}, at::ScalarType dtype = at::kFloat) {
    add("blocks.0", "blocks.0.weight", {97, 41}, true);
    add("blocks.0", "blocks.0.bias", {97}, true);
    add("blocks.0", "blocks.0.frozen", {31, 7}, false);
    add("head", "head.weight", {13, 7}, true);
    add("head", "head.none", {0, 3}, true);
    add("blocks.1", "blocks.1.weight", {613, 9}, true);
    add("tower", "tower.weight", {300}, false);
    StoreSettings settings;
    settings.dtype = dtype;
    settings.gradients = true;
    settings.topology = topology;
    std::vector<Param*> pointers;
    for (const auto& param : params) pointers.push_back(param.get());
    store = std::make_unique<ParamStore>(pointers, policies, settings);
    for (const ParamGroup& group : store->groups()) {
      if (group.trained.empty()) continue;
      states.push_back({&group, at::zeros({group.trained.part}, at::kFloat),
                        at::zeros({group.trained.part}, at::kFloat)});
    }
  }

  void fill(int64_t seed) {
    each([&](const Segment& s, const ParamStore::Range& mine, const at::Tensor& avg,
             const at::Tensor& avg_sq) {
      const ParamSpec& spec = s.param->spec;
      store->assign(spec.name, small_values("master", spec, seed));
      avg.copy_(small_values("exp_avg", spec, seed).view(-1).narrow(0, mine.first, mine.count));
      avg_sq.copy_(
          small_values("exp_avg_sq", spec, seed).view(-1).narrow(0, mine.first, mine.count));
    });
  }

  // Every element of this rank is what fill(seed) sets.
  void expect_filled(int64_t seed, const std::string& what) const {
    each([&](const Segment& s, const ParamStore::Range& mine, const at::Tensor& avg,
             const at::Tensor& avg_sq) {
      const ParamSpec& spec = s.param->spec;
      expect_bits(store->owned_values(spec.name), "master", spec, seed, mine, what);
      expect_bits(avg, "exp_avg", spec, seed, mine, what);
      expect_bits(avg_sq, "exp_avg_sq", spec, seed, mine, what);
    });
  }

  std::vector<std::unique_ptr<Param>> params;
  std::vector<ParamPolicy> policies;
  std::unique_ptr<ParamStore> store;
  std::vector<GroupState> states;

 private:
  void add(const char* group, const char* name, std::vector<int64_t> shape, bool train) {
    params.push_back(std::make_unique<Param>());
    params.back()->spec.name = name;
    params.back()->spec.group = group;
    params.back()->spec.shape = std::move(shape);
    policies.push_back({train, 1, 0});
  }

  template <class Act>  // (segment, range of this rank, its part of either moment)
  void each(const Act& act) const {
    for (const GroupState& state : states) {
      for (const Segment& s : state.group->trained.segments) {
        const ParamStore::Range mine = store->owned(s.param->spec.name);
        if (mine.count == 0) continue;
        const int64_t at = s.offset + mine.first - state.group->trained.begin;
        act(s, mine, state.exp_avg.narrow(0, at, mine.count),
            state.exp_avg_sq.narrow(0, at, mine.count));
      }
    }
  }

  static void expect_bits(const at::Tensor& got, const std::string& kind, const ParamSpec& spec,
                          int64_t seed, const ParamStore::Range& mine, const std::string& what) {
    const at::Tensor want =
        small_values(kind, spec, seed).view(-1).narrow(0, mine.first, mine.count);
    ASSERT_EQ(got.numel(), want.numel());
    EXPECT_EQ(std::memcmp(got.const_data_ptr(), want.const_data_ptr(), want.nbytes()), 0)
        << what << ": " << kind << "." << spec.name;
  }
};

inline CheckpointContent small_content(int64_t step) {
  CheckpointContent c;
  c.step = step;
  c.config_yaml = cat("run: {dir: ä}\n# step ", step, "\n");
  c.state = {{"step", step}, {"metrics_offset", 12345678901}, {"device", "cpu"}};
  c.frozen = {{"tower", "00ff"}, {"blocks.0", cat("hash of step ", step)}};
  return c;
}

// Saves `state` as this rank's part of the checkpoint of `step`.
inline void save_small(const fs::path& run_dir, const SmallState& state, Ranks& ranks, int64_t step,
                       int64_t keep = 100) {
  const std::atomic<bool> never{false};
  SaveChannel channel(ranks.store, cat("save ", step), ranks.rank(), ranks.size(), 60, never);
  const std::vector<ShardTensor> shard = shard_tensors(state.states, ranks.topology);
  write_train_checkpoint(
      run_dir, small_content(step), state_layout(*state.store),
      [&]() -> const std::vector<ShardTensor>& { return shard; }, keep, channel);
}

}  // namespace mgm
