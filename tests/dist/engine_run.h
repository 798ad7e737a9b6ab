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
  bool zero_router = false;  // all tokens visit the first experts
};

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

// This rank's micro-batches of a step, dealt as the loader deals them.
inline std::vector<Batch> deal(const Scenario& scenario, const MiniGemini& model,
                               const RunConfig& config, const Ranks& ranks, int64_t step) {
  const int64_t leaf = leaf_micro_batches(config), micro = config.train.micro_batch;
  std::vector<Batch> out;
  for (int64_t first = 0; first < kGlobalBatch; first += micro) {
    if (first / micro / leaf % ranks.size() != ranks.rank()) continue;
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
