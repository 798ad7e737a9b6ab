// Steps of the tiny model on N ranks that are threads, put together to what one rank would have.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "grad_check.h"
#include "rank_threads.h"
#include "tiny_model.h"
#include "train/recompute.h"

namespace mgm {

inline constexpr int64_t kGlobalBatch = 24;

inline bool full_matrix() {
  const char* value = std::getenv("MGM_TEST_FULL");
  return value && std::string(value) == "1";
}

struct Scenario {
  std::string name;
  std::function<void(RunConfig&)> change = [](RunConfig&) {};
  // Pictures of sample i; by default a mixture.
  std::function<int64_t(int64_t)> pictures = [](int64_t i) { return i % 5 == 1 ? 0 : i % 3; };
  std::function<bool(int64_t)> hole = [](int64_t) { return false; };
  bool text_on_some = false;  // pictures must leave a rank beside others without any
  bool zero_router = false;   // all tokens visit the first experts
};

// Micro-batches of text alone beside others with pictures, whether a rank takes one sample a time
// or three.
inline int64_t pictures_of_some(int64_t i) { return i < kGlobalBatch / 2 ? i / 3 % 2 : i % 2; }

inline std::vector<TrainRule> preset(RulePreset which) {
  TrainRule rule;
  rule.preset = which;
  return {rule};
}

inline RunConfig config_of(const Scenario& scenario) {
  RunConfig config = tiny_config();
  config.train.global_batch = kGlobalBatch;
  config.train.micro_batch = 3;
  config.optimizer.lr = 1e-3;
  config.optimizer.clip_norm = 1.0;
  config.optimizer.weight_decay = 0.01;
  scenario.change(config);
  return config;
}

inline int64_t rank_of(const RunConfig& config, int64_t sample, int world) {
  return sample / config.train.micro_batch / leaf_micro_batches(config) % world;
}

// Whether in some round, the n-th micro-batch of every rank, one has text alone and another not.
inline bool a_round_is_mixed(const Scenario& scenario, const RunConfig& config, int world) {
  const int64_t micro = config.train.micro_batch;
  std::vector<std::vector<bool>> seen(static_cast<size_t>(world));
  for (int64_t first = 0; first < kGlobalBatch; first += micro) {
    bool any = false;
    for (int64_t i = first; i < first + micro; ++i) any = any || scenario.pictures(i) > 0;
    seen[static_cast<size_t>(rank_of(config, first, world))].push_back(any);
  }
  for (size_t round = 0; round < seen[0].size(); ++round) {
    for (const std::vector<bool>& rank : seen) {
      if (rank[round] != seen[0][round]) return true;
    }
  }
  return false;
}

// This rank's micro-batches of a step, dealt as the loader deals them.
inline std::vector<Batch> deal(const Scenario& scenario, const MiniGemini& model,
                               const RunConfig& config, const Ranks& ranks, int64_t step) {
  const int64_t micro = config.train.micro_batch;
  std::vector<Batch> out;
  for (int64_t first = 0; first < kGlobalBatch; first += micro) {
    if (rank_of(config, first, ranks.size()) != ranks.rank()) continue;
    std::vector<Sample> samples;
    int64_t holes = 0;
    for (int64_t i = first; i < first + micro; ++i) {
      if (scenario.hole(i)) {
        ++holes;
      } else {
        samples.push_back(tiny_sample(model, 100 * step + i, scenario.pictures(i), 6 + i % 7));
      }
    }
    out.push_back(pack(samples, holes, 0));
  }
  return out;
}

struct Outcome {
  std::map<std::string, at::Tensor> grads, weights;  // whole, of the last step
  std::vector<double> losses, norms;
};

// Trains `steps` steps (0: gradients of one, no optimizer) and puts the parts of all ranks
// together. Replicas must agree to the bit.
inline Outcome train(const Scenario& scenario, RunConfig config, int world, at::ScalarType dtype,
                     int64_t steps) {
  // Every world needs a whole number of micro-batches.
  while (kGlobalBatch % (config.train.micro_batch * world) != 0) --config.train.micro_batch;
  if (scenario.text_on_some && world > 1) {
    EXPECT_TRUE(a_round_is_mixed(scenario, config, world)) << scenario.name << " on " << world;
  }
  Outcome out;
  std::mutex mutex;
  run_ranks(world, config.dist, [&](Ranks& ranks) {
    TinyModel tiny(config, dtype, at::kCPU, ranks.topology);
    for (const Param* param : tiny.params) {
      const std::string& name = param->spec.name;
      if (!scenario.zero_router || !name.ends_with("block_sparse_moe.gate.weight")) continue;
      tiny.store->assign(name, at::zeros(param->spec.shape));
    }
    TrainModule module(tiny.config, tiny.model, *tiny.store,
                       make_recompute_runner(config.train.recompute), ranks);
    std::vector<double> losses, norms;
    for (int64_t step = 1; step <= std::max<int64_t>(1, steps); ++step) {
      const std::vector<Batch> batches = deal(scenario, tiny.model, config, ranks, step);
      const StepAgreement agreed = agree(ranks, config, batches);
      const StepResult result = steps == 0
                                    ? module.forward_backward(batches, agreed, step)
                                    : module.step(batches, agreed, step, config.optimizer.lr);
      losses.push_back(result.loss.item<double>());
      if (steps > 0) norms.push_back(result.grad_norm.item<double>());
    }
    const std::lock_guard lock(mutex);
    if (out.losses.empty()) {
      out.losses = losses;
      out.norms = norms;
    }
    EXPECT_EQ(out.losses, losses);
    EXPECT_EQ(out.norms, norms);
    const auto keep = [](std::map<std::string, at::Tensor>& into, const Param& param,
                         const ParamStore::Range& range, const at::Tensor& part) {
      at::Tensor& whole = into[param.spec.name];
      if (!whole.defined()) whole = at::full({param.spec.numel()}, NAN, part.options());
      at::Tensor place = whole.narrow(0, range.first, range.count);
      if (range.count > 0 && !std::isnan(place[0].item<double>())) {
        EXPECT_TRUE(at::equal(place, part)) << param.spec.name << " differs between replicas";
      }
      place.copy_(part);
    };
    for (const ParamGroup& group : tiny.store->groups()) {
      for (const Segment& s : group.trained.segments) {
        const std::string& name = s.param->spec.name;
        const ParamStore::Range range = tiny.store->owned(name);
        keep(out.grads, *s.param, range, tiny.store->owned_grad(name));
        keep(out.weights, *s.param, range, tiny.store->owned_values(name));
      }
    }
  });
  return out;
}

// Mathematically zero: scores do not depend on a bias that all keys share. In one of a group's
// ranks the rounding noise is another.
inline bool zero_gradient(const std::string& name) {
  return name.find("k_proj.bias") != name.npos ||
         name.find("vlm_uni_aux_projector.0.bias") != name.npos ||
         name.find("vlm_uni_aux_projector.1.bias") != name.npos;
}

inline void expect_equal_gradients(const Outcome& got, const Outcome& want, double bound,
                                   const std::string& what) {
  ASSERT_EQ(got.grads.size(), want.grads.size()) << what;
  double largest = 0;
  for (const auto& [name, grad] : want.grads)
    largest = std::max(largest, grad.norm().item<double>());
  EXPECT_GT(largest, 0) << what;
  for (const auto& [name, grad] : want.grads) {
    const at::Tensor& mine = got.grads.at(name);
    if (zero_gradient(name)) {
      EXPECT_LT(mine.norm().item<double>(), 1e-4 * largest) << what << ": " << name;
    } else if (grad.norm().item<double>() == 0) {
      EXPECT_EQ(mine.norm().item<double>(), 0) << what << ": " << name;
    } else {
      EXPECT_TRUE(near_l2(mine, grad, bound)) << what << ": " << name;
    }
  }
}

}  // namespace mgm
