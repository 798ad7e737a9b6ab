// Planned memory against tensors: what the store and the optimizer hold, exactly, for every mode
// and rank; and the highest point of a real step on the CPU, counted by the allocator.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include "dist/ranks.h"
#include "tiny_model.h"
#include "train/recompute.h"
#include "train/run_plan.h"

namespace mgm {
namespace {

constexpr DistMode kModes[] = {DistMode::kReplicate, DistMode::kZero1, DistMode::kZero2,
                               DistMode::kZero3, DistMode::kHybrid};

std::vector<TrainRule> preset(RulePreset which) {
  TrainRule rule;
  rule.preset = which;
  return {rule};
}

PlannedModel plan_of(const RunConfig& config) {
  const MiniGemini model(config.model, config.image);
  return plan_model(config, model, resolve_rules(model.params(), config).policies);
}

// ---- what is held all along ---------------------------------------------------------------------

StateMemory state_of(const TinyModel& tiny) {
  StateMemory out;
  Ranks ranks = local_ranks({});  // the optimizer holds this rank's parts, whoever the others are
  AdamW optimizer(*tiny.store, ranks, tiny.config.optimizer);
  for (const AdamW::State& state : optimizer.states()) {
    out.moments += double(state.exp_avg.nbytes() + state.exp_avg_sq.nbytes());
  }
  for (const ParamGroup& group : tiny.store->groups()) {
    for (const Flat* flat : {&group.trained, &group.frozen}) {
      const at::Tensor& held = has_storage(*flat) ? flat->full : flat->shard;
      out.weights += double(held.storage().nbytes());
    }
    if (!group.master.defined()) continue;
    out.gradients += double(group.grad.nbytes());
    if (group.master.data_ptr() != group.trained.shard.data_ptr()) {
      out.master += double(group.master.nbytes());
    }
  }
  return out;
}

TEST(PlanState, IsWhatTheStoreAndTheOptimizerHold) {
  int compared = 0;
  for (const RulePreset rules : {RulePreset::kStage1, RulePreset::kStage2}) {
    for (const DistMode mode : kModes) {
      for (const int world : {1, 2, 3, 8}) {
        if (mode == DistMode::kHybrid && world != 8) continue;
        RunConfig config = tiny_config();
        config.train.rules = preset(rules);
        config.dist.mode = mode;
        config.dist.shard_size = mode == DistMode::kHybrid ? 2 : 0;
        const PlannedModel model = plan_of(config);
        for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
          for (int rank = 0; rank < world; rank += std::max(1, world - 1)) {
            const Topology topology = make_topology(config.dist, rank, world, world);
            const TinyModel tiny(config, dtype, at::kCPU, topology);
            const StateMemory held = state_of(tiny);
            const StateMemory planned =
                state_memory(model.sizes, topology, dtype == at::kFloat ? 4 : 2);
            const std::string what = cat(name_of(mode), " rank ", rank, " of ", world);
            EXPECT_EQ(planned.weights, held.weights) << what;
            EXPECT_EQ(planned.master, held.master) << what;
            EXPECT_EQ(planned.moments, held.moments) << what;
            EXPECT_EQ(planned.gradients, held.gradients) << what;
            EXPECT_GT(held.weights, 0) << what;
            ++compared;
          }
        }
      }
    }
  }
  EXPECT_EQ(compared, 2 * 2 * (4 * (1 + 2 + 2 + 2) + 2));
}

// ---- the highest point --------------------------------------------------------------------------

// Counts what this thread allocates on the CPU.
struct Counter final : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    now += size;
    peak = std::max(peak, now);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t now = 0, peak = 0;
};

// Other ranks that have what this one has, and whose collectives take no memory of their own: Gloo
// reduces copies, and frees them in its threads. What a GPU's ranks allocate is the engine's.
class Echo final : public ProcessGroup {
 public:
  Echo(int rank, int size) : ProcessGroup("echo", rank, size, nullptr) {}

 protected:
  Pending do_all_reduce_sum(at::Tensor& tensor) override {
    tensor.mul_(size());
    return {};
  }
  Pending do_all_gather(at::Tensor& out, at::Tensor& in) override {
    for (at::Tensor& part : out.view({size(), in.numel()}).unbind()) {
      if (part.data_ptr() != in.data_ptr()) part.copy_(in.view(-1));
    }
    return {};
  }
  Pending do_reduce_scatter_sum(at::Tensor& out, at::Tensor& in) override {
    out.copy_(in.narrow(0, rank() * out.numel(), out.numel())).mul_(size());
    return {};
  }
  Pending do_all_to_all(at::Tensor& out, at::Tensor& in, std::vector<int64_t>&,
                        std::vector<int64_t>&) override {
    out.copy_(in);
    return {};
  }
  Pending do_broadcast(at::Tensor&, int) override { return {}; }
  void do_barrier() override {}
};

Ranks echo_ranks(const DistConfig& config, int world) {
  if (world == 1) return local_ranks(config);
  LaunchEnv env;
  env.world = env.local_world = world;
  Ranks ranks = place_rank(env, config, nullptr);
  ranks.control = ranks.world = std::make_shared<Echo>(0, world);
  ranks.gather = ranks.reduce = std::make_shared<Echo>(0, ranks.topology.shard_size);
  ranks.replica = std::make_shared<Echo>(0, ranks.topology.replicas);
  return ranks;
}

// Large enough that what grows with the batch outweighs what does not, small enough for a second.
RunConfig medium_config() {
  RunConfig c = tiny_config();
  LlmConfig& llm = c.model.llm;
  llm.vocab_size = 700;
  llm.hidden_size = 96;
  llm.intermediate_size = 256;
  llm.num_layers = 6;
  llm.num_heads = 6;
  llm.num_kv_heads = 6;
  llm.head_dim = 16;
  c.model.vision_tower.hidden_size = 64;
  c.model.vision_tower.intermediate_size = 256;
  c.model.convnext.dims = {24, 48, 96, 192};
  c.train.device = DeviceKind::kCpu;
  c.train.rules = preset(RulePreset::kStage2);
  c.text.max_length = 512;
  return c;
}

struct MemoryCase {
  std::string name;
  std::function<void(RunConfig&)> change = [](RunConfig&) {};
  int64_t text = 90, images = 1;
  int world = 1;
};

std::ostream& operator<<(std::ostream& out, const MemoryCase& c) { return out << c.name; }

std::vector<MemoryCase> memory_cases() {
  std::vector<MemoryCase> out;
  const auto recompute = [](RecomputePolicy policy) {
    return [policy](RunConfig& c) { c.train.recompute = {{"model.layers.*", policy}}; };
  };
  out.push_back({"stage2"});
  out.push_back({"stage2_full", recompute(RecomputePolicy::kFull)});
  out.push_back({"stage2_selective", recompute(RecomputePolicy::kSelective)});
  out.push_back({"stage1", [](RunConfig& c) { c.train.rules = preset(RulePreset::kStage1); }});
  out.push_back({"stage1_full", [](RunConfig& c) {
                   c.train.rules = preset(RulePreset::kStage1);
                   c.train.recompute = {{"model.layers.*", RecomputePolicy::kFull}};
                 }});
  out.push_back({"everything", [](RunConfig& c) { c.train.rules = tiny_config().train.rules; }});
  out.push_back({"literal_mining", [](RunConfig& c) {
                   c.model.mining.kernel = MiningKernel::kReference;
                   c.train.recompute = {{"model.layers.*", RecomputePolicy::kFull}};
                 }});
  out.push_back({"wide_head", [](RunConfig& c) {
                   c.model.llm.vocab_size = 8000;
                   c.train.recompute = {{"*", RecomputePolicy::kFull}};
                 }});
  for (const Quantize quantize : {Quantize::kNf4, Quantize::kInt8}) {
    out.push_back({quantize == Quantize::kNf4 ? "adapters_nf4" : "adapters_int8_full",
                   [quantize](RunConfig& c) {
                     c.model.llm.quantize = quantize;
                     c.model.llm.hidden_size = 192;
                     c.model.llm.intermediate_size = 768;
                     c.model.adapter.kind = AdapterKind::kLora;
                     c.model.adapter.rank = 8;
                     c.train.rules = preset(RulePreset::kAdapter);
                     if (quantize == Quantize::kNf4) return;
                     c.train.recompute = {{"model.layers.*", RecomputePolicy::kFull}};
                   }});
  }
  const auto arch = [](LlmArch which) {
    return [which](RunConfig& c) {
      LlmConfig& llm = c.model.llm;
      llm.arch = which;
      llm.num_kv_heads = 2;
      if (which == LlmArch::kMixtral) llm.num_experts = 4;
      const bool gemma = which == LlmArch::kGemma || which == LlmArch::kGemma2;
      if (gemma) {
        llm.activation = Activation::kGeluTanh;
        llm.tie_embeddings = true;
        llm.head_dim = 32;
      }
      if (which != LlmArch::kGemma2) return;
      llm.attention_softcap = 50;
      llm.final_softcap = 30;
      llm.sliding_window = 64;
    };
  };
  for (const auto& [name, which] :
       std::initializer_list<std::pair<const char*, LlmArch>>{{"llama_grouped", LlmArch::kLlama},
                                                              {"qwen3", LlmArch::kQwen3},
                                                              {"phi3", LlmArch::kPhi3},
                                                              {"mixtral", LlmArch::kMixtral},
                                                              {"gemma", LlmArch::kGemma},
                                                              {"gemma2", LlmArch::kGemma2}}) {
    out.push_back({name, arch(which)});
    out.push_back({cat(name, "_full"), [change = arch(which)](RunConfig& c) {
                     change(c);
                     c.train.recompute = {{"model.layers.*", RecomputePolicy::kFull}};
                   }});
  }
  MemoryCase text{"text_only", recompute(RecomputePolicy::kNone)};
  text.images = 0;
  text.text = 200;
  out.push_back(text);
  for (const DistMode mode : kModes) {
    MemoryCase ranks{cat("stage2_", name_of(mode), "_on_4"), [mode](RunConfig& c) {
                       c.dist.mode = mode;
                       c.dist.shard_size = mode == DistMode::kHybrid ? 2 : 0;
                       c.model.llm.hidden_size = 192;
                       c.model.llm.intermediate_size = 768;
                       c.train.recompute = {{"model.layers.*", RecomputePolicy::kFull}};
                     }};
    ranks.world = 4;
    out.push_back(ranks);
  }
  return out;
}

class PlanPeak : public testing::TestWithParam<MemoryCase> {
 protected:
  static void SetUpTestSuite() { install_recompute_engine(); }
};
INSTANTIATE_TEST_SUITE_P(Cases, PlanPeak, testing::ValuesIn(memory_cases()),
                         [](const auto& test) { return test.param.name; });

TEST_P(PlanPeak, IsWhatTheAllocatorCounts) {
  const MemoryCase& c = GetParam();
  RunConfig config = medium_config();
  c.change(config);
  constexpr int64_t kSamples = 6, kSteps = 2;
  config.train.micro_batch = kSamples;
  config.train.global_batch = kSamples * c.world;
  Ranks ranks = echo_ranks(config.dist, c.world);
  const auto counter = std::make_shared<Counter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
  TinyModel tiny(config, at::kFloat, at::kCPU, ranks.topology);
  TrainModule module(tiny.config, tiny.model, *tiny.store,
                     make_recompute_runner(config.train.recompute), ranks);
  const int64_t held = counter->now;
  MemoryPlan plan;
  counter->peak = held;
  for (int64_t step = 1; step <= kSteps; ++step) {
    std::vector<Sample> samples;
    for (int64_t i = 0; i < kSamples; ++i) {
      samples.push_back(tiny_sample(tiny.model, i, c.images, c.text));
      Sample& sample = samples.back();  // all text is supervised
      for (size_t t = 1; t < sample.ids.size(); ++t) {
        if (sample.ids[t] != kImageTokenIndex) sample.labels[t] = sample.ids[t];
      }
    }
    const std::vector<Batch> batches = {pack(samples, 0, 0)};
    module.step(batches, agree(ranks, config, batches), step, 1e-3);
    plan = plan_memory(plan_of(config), ranks.topology, false, shape_of(batches[0]), 1);
  }
  // The difference is what plans are uncertain about; state is exact.
  const PlannedModel model = plan_of(config);
  const StateMemory state = state_memory(model.sizes, ranks.topology, 4);
  const double state_bytes = state.weights + state.moments + state.gradients + model.packed;
  EXPECT_NEAR(double(held), state_bytes, 0.01 * state_bytes);
  const double measured = double(counter->peak);
  EXPECT_NEAR(plan.peak() / measured, 1, 0.05)
      << "planned " << int64_t(plan.peak()) << " at " << plan.where << ", measured "
      << counter->peak << "; state " << state_bytes << ", gathered " << plan.gathered
      << ", buckets " << plan.buckets << ", kept " << plan.kept << ", working " << plan.working
      << ", batch " << plan.batch;
}

}  // namespace
}  // namespace mgm
