// Planned floating-point operations against the matrix products of a real step on the CPU.
#include <gtest/gtest.h>
#include <torch/library.h>

#include "tiny_model.h"
#include "train/plan/flops.h"
#include "train/recompute.h"
#include "train/run_plan.h"

namespace mgm {
namespace {

// Every operation of this thread goes through here while the mode is on (Products below).
thread_local double g_flops = 0;
constexpr c10::DispatchKey kMode = c10::DispatchKey::TESTING_ONLY_GenericMode;

void count_products(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard once(kMode);
  const std::string& name = op.schema().name();
  const bool added = name == "aten::addmm", linear = name == "aten::linear";
  double flops = 0;
  if (added || linear || name == "aten::mm" || name == "aten::matmul" || name == "aten::bmm") {
    const size_t first = stack->size() - op.schema().arguments().size() + (added ? 1 : 0);
    const at::Tensor &a = (*stack)[first].toTensor(), &b = (*stack)[first + 1].toTensor();
    flops = 2 * double(a.numel()) * double(b.size(linear ? 0 : -1));
  }
  op.callBoxed(stack);
  g_flops += flops;  // unless it was left: a second run ends within its last product
}

TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericMode, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&count_products>());
}

// What every matrix product of this thread takes from now on.
class Products {
 public:
  Products() : mode_(kMode) { g_flops = 0; }
  double flops() const { return g_flops; }

 private:
  c10::impl::IncludeDispatchKeyGuard mode_;
};

struct Flops {
  double counted = 0, planned = 0, recomputed = 0;
};

// Of one step; the plan's without attention, which is no matrix product here.
Flops of_step(const std::function<void(RunConfig&)>& change, int64_t images) {
  constexpr int64_t kBatch = 3, kText = 40;
  RunConfig config = tiny_config();
  config.train.device = DeviceKind::kCpu;
  change(config);
  config.train.micro_batch = config.train.global_batch = kBatch;
  Ranks ranks = local_ranks(config.dist);
  TinyModel tiny(config, at::kFloat, at::kCPU, ranks.topology);
  TrainModule module(tiny.config, tiny.model, *tiny.store,
                     make_recompute_runner(config.train.recompute), ranks);
  std::vector<Sample> samples;
  for (int64_t i = 0; i < kBatch; ++i) {
    samples.push_back(tiny_sample(tiny.model, i, images, kText));
  }
  const std::vector<Batch> batches = {pack(samples, 0, 0)};
  Flops out;
  {
    Products products;
    module.step(batches, agree(ranks, config, batches), 1, 1e-3);
    out.counted = products.flops();
  }
  const MiniGemini model(config.model, config.image);
  const PlannedModel plan =
      plan_model(config, model, resolve_rules(model.params(), config).policies);
  const BatchShape shape = shape_of(batches[0]);
  BatchShape without = shape;
  without.segments = 0;  // and so without attention
  for (const UseFlops& use : use_flops(plan, without)) {
    out.planned += use.all();
    out.recomputed += use.recompute;
  }
  return out;
}

void recompute(RunConfig& config, const std::string& match, RecomputePolicy policy) {
  config.train.recompute = {{match, policy}};
}

class PlanFlops : public testing::Test {
 protected:
  static void SetUpTestSuite() { install_recompute_engine(); }
};

TEST_F(PlanFlops, OfAStepOfText) {
  const Flops plain = of_step([](RunConfig&) {}, 0);
  EXPECT_GT(plain.planned, 0);
  EXPECT_NEAR(plain.counted / plain.planned, 1, 1e-9);
  for (const auto policy : {RecomputePolicy::kFull, RecomputePolicy::kSelective}) {
    const Flops again = of_step([&](RunConfig& c) { recompute(c, "model.layers.*", policy); }, 0);
    EXPECT_NEAR(again.counted / again.planned, 1, 1e-9);
    EXPECT_NEAR(again.counted - plain.counted, again.recomputed, 1e-9 * again.counted);
  }
}

// What a second run adds: all of it but the last matrix, where nothing behind that keeps anything.
TEST_F(PlanFlops, OfASecondRun) {
  struct Case {
    std::string name, match = "model.layers.*";
    std::function<void(RunConfig&)> change = [](RunConfig&) {};
    double uncounted = 0;  // planned, and no product: CLIP's attention
    double over = 1e-9;    // share that is planned and not done
  };
  const auto mixtral = [](RunConfig& c) {
    c.model.llm.arch = LlmArch::kMixtral;
    c.model.llm.num_experts = 4;
  };
  const auto lora = [](RunConfig& c) {
    c.model.adapter.kind = AdapterKind::kLora;
    c.model.adapter.rank = 8;
  };
  const auto gemma2 = [](RunConfig& c) { c.model.llm.arch = LlmArch::kGemma2; };
  const auto stage1 = [](RunConfig& c) { c.train.rules[0].preset = RulePreset::kStage1; };
  const std::vector<Case> cases = {
      {.name = "llama"},
      {.name = "frozen", .change = stage1},
      {.name = "a norm behind", .change = gemma2},
      {.name = "weighted experts", .change = mixtral},
      // The last product is that of the last adapter, which the plan takes along.
      {.name = "adapters", .change = lora, .over = 0.03},
      // 3 pictures, 2 blocks, 10 tokens of width 20.
      {.name = "clip", .match = "*vision_tower.*layers.*", .uncounted = 3 * 2 * 4 * 10 * 10 * 20},
  };
  for (const Case& c : cases) {
    const Flops plain = of_step(c.change, 1);
    const auto twice = [&](RunConfig& config) {
      c.change(config);
      recompute(config, c.match, RecomputePolicy::kFull);
    };
    const Flops again = of_step(twice, 1);
    EXPECT_GT(again.recomputed, 0) << c.name;
    const double done = again.counted - plain.counted + c.uncounted;
    EXPECT_NEAR(done / again.recomputed, 1, c.over) << c.name;
  }
}

}  // namespace
}  // namespace mgm
