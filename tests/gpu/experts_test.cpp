// The grouped product of experts on the GPU beside the loop over them, a block with either, and a
// model directory that is read so that it is taken.
#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include "assemble/model_dir.h"
#include "expert_weights.h"
#include "gpu/gpu.h"
#include "gpu/no_waits.h"
#include "grad_check.h"
#include "model/feed_forward.h"
#include "ops/grouped_linear.h"
#include "tiny_model.h"
#include "unit/data/test_files.h"
#include "unit/infer/tiny_chat.h"

namespace mgm {
namespace {

class ExpertsGpu : public GpuTest {};

// The loop and the grouped product multiply the same bf16 numbers, sum in fp32 in orders of their
// own and round once to bf16: an element is the same or a neighbour, 2^-8 of it away at most.
constexpr double kRounding = 1.0 / 256;
const at::TensorOptions kHalf = at::TensorOptions(at::Device(at::kCUDA, 0)).dtype(at::kBFloat16);

TEST_F(ExpertsGpu, GroupedProductIsTheLoopAndGivesZerosToEmptyExperts) {
  at::manual_seed(80);
  const std::vector<std::vector<int64_t>> all = {{5, 0, 130, 1},  {0, 0, 0, 17}, {512, 0, 0, 0},
                                                 {1, 1, 1, 1},    {0, 0, 0, 0},  {300, 7, 2000, 0},
                                                 {0, 257, 0, 129}};
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{64, 96}, {1408, 512}, {256, 2048}}) {
    for (const std::vector<int64_t>& counts : all) {
      const std::string what = cat(out, " x ", in, ", rows ", at::IntArrayRef(counts));
      const at::Tensor ends = at::tensor(counts, at::kLong).cuda().cumsum(0).to(at::kInt);
      const int64_t rows = ends[3].item<int64_t>();
      const auto weights = expert_weights(4, out, in, kHalf);
      const at::Tensor x = at::randn({rows, in}).cuda().to(at::kBFloat16).requires_grad_();
      const ops::StackedWeights stacks = ops::stack_weights(weights);
      ASSERT_TRUE(ops::has_grouped_kernel(x, stacks)) << what;
      const at::Tensor y = ops::grouped_linear(x, stacks, ends);
      std::vector<at::Tensor> parts;
      int64_t begin = 0;
      for (size_t e = 0; e < counts.size(); ++e) {
        parts.push_back(at::linear(x.narrow(0, begin, counts[e]), weights[e]));
        begin += counts[e];
      }
      const at::Tensor want = at::cat(parts), d_out = at::randn_like(want);
      EXPECT_TRUE(near_l2(y, want, kRounding)) << what;
      std::vector<at::Tensor> inputs = {x};
      inputs.insert(inputs.end(), weights.begin(), weights.end());
      const auto got = gradients(y, inputs, d_out), expected = gradients(want, inputs, d_out);
      for (size_t i = 0; i < inputs.size(); ++i) {
        EXPECT_TRUE(near_l2(got[i], expected[i], kRounding)) << what << ", input " << i;
        // One order of additions, whatever runs beside it.
        EXPECT_TRUE(at::equal(got[i], gradients(y, inputs, d_out)[i])) << what << ", input " << i;
      }
      for (size_t e = 0; e < counts.size(); ++e) {
        if (counts[e] > 0) continue;
        EXPECT_EQ(got[1 + e].abs().max().item<double>(), 0) << what << ", expert " << e;
      }
    }
  }
}

TEST_F(ExpertsGpu, WidthsAndPlacesThatTheKernelCannotTakeAreToldApart) {
  const at::Tensor x = at::randn({4, 64}).cuda().to(at::kBFloat16);
  const auto takes = [](const at::Tensor& rows, std::vector<at::Tensor> weights) {
    return ops::has_grouped_kernel(rows, ops::stack_weights(std::move(weights)));
  };
  EXPECT_TRUE(takes(x, expert_weights(3, 8, 64, kHalf)));
  EXPECT_FALSE(takes(x, expert_weights(3, 12, 64, kHalf)));
  EXPECT_FALSE(takes(x.to(at::kFloat), expert_weights(3, 8, 64, kHalf)));
  EXPECT_FALSE(takes(x, expert_weights(3, 8, 64, kHalf.dtype(at::kFloat))));
  auto apart = expert_weights(3, 8, 64, kHalf);
  apart[1] = at::randn({8, 64}).cuda().to(at::kBFloat16);
  EXPECT_FALSE(takes(x, apart));
}

// A block's experts as a run has them.
struct Block {
  Block() : mlps("moe", "block", "block", config()), params(mlps.params()) {
    StoreSettings settings;
    settings.device = at::Device(at::kCUDA, 0);
    settings.dtype = at::kBFloat16;
    settings.gradients = true;
    std::vector<ParamPolicy> policies(params.size());
    for (ParamPolicy& policy : policies) policy.train = true;
    store = std::make_unique<ParamStore>(params, policies, settings);
    for (size_t i = 0; i < params.size(); ++i) {
      store->assign(params[i]->spec.name, redrawn(params[i]->spec, i + 1));
    }
  }
  static LlmConfig config() {
    LlmConfig c = tiny_config().model.llm;
    c.arch = LlmArch::kMixtral;
    c.hidden_size = 128;
    c.intermediate_size = 352;
    c.num_experts = 8;
    return c;
  }
  ExpertMlps mlps;
  std::vector<Param*> params;
  std::unique_ptr<ParamStore> store;
};

// The path is grouped, and the same numbers come of it.
TEST_F(ExpertsGpu, ABlockTakesTheGroupedPathAndAgreesWithTheLoop) {
  const Block block;
  const ExpertMlps& mlps = block.mlps;
  const std::vector<Param*>& params = block.params;
  ParamStore& store = *block.store;
  at::manual_seed(81);
  const at::Tensor data = at::randn({777, 128}).cuda().to(at::kBFloat16);
  const at::Tensor d_y = at::randn({777, 128}).cuda().to(at::kBFloat16);
  std::map<bool, std::vector<at::Tensor>> results;
  for (const bool one_product : {false, true}) {
    store.begin_step();
    store.groups().front().grad.zero_();
    const at::Tensor x = data.detach().clone().requires_grad_();
    const ExpertMlps::Routed r = mlps.route(x);
    const ExpertMlps::Stacks stacks = mlps.grouped(r.rows_RH, 0, 8);
    ASSERT_EQ(stacks.size(), 3u);
    const at::Tensor y = mlps.combine(
        mlps.compute(r.rows_RH, {}, 0, r.visits_E, one_product ? stacks : ExpertMlps::Stacks()),
        r.back_R, r.weight_Tk);
    y.backward(d_y);
    results[one_product] = {y.detach(), x.grad()};
    for (const Param* param : params) {
      results[one_product].push_back(store.owned_grad(param->spec.name).clone());
    }
  }
  const auto &loop = results[false], &grouped = results[true];
  // Two products one behind the other, each with its rounding.
  for (size_t i = 0; i < loop.size(); ++i) {
    EXPECT_TRUE(near_l2(grouped[i], loop[i], 2 * kRounding))
        << (i < 2 ? (i == 0 ? "y" : "x") : params[i - 2]->spec.name);
  }
}

// Neither where the visits are on the GPU, nor where the host knows them, as of dealt experts.
TEST_F(ExpertsGpu, GroupedExpertsAreComputedWithoutAWait) {
  const Block block;
  at::manual_seed(82);
  const at::Tensor x = at::randn({777, 128}).cuda().to(at::kBFloat16);
  const ExpertMlps::Routed r = block.mlps.route(x);
  const at::Tensor visits = r.visits_E.cpu();
  const ExpertMlps::Stacks stacks = block.mlps.grouped(r.rows_RH, 0, 8);
  ASSERT_EQ(stacks.size(), 3u);
  at::Tensor there, known;
  {
    const NoWaits no_waits;
    EXPECT_THROW(r.visits_E.cpu(), c10::Error) << "nothing would be seen";
    const ExpertMlps::Routed again = block.mlps.route(x);
    there = block.mlps.compute(again.rows_RH, {}, 0, again.visits_E, stacks);
    known = block.mlps.compute(r.rows_RH, {}, 0, visits, stacks);
  }
  EXPECT_TRUE(at::equal(known, there));
}

// Grouped products that the dispatcher has been asked for while the object lives.
class GroupedProducts {
 public:
  GroupedProducts() {
    count_ = 0;
    handle_ =
        at::addThreadLocalCallback(at::RecordFunctionCallback([](const at::RecordFunction& call) {
                                     if (std::string_view(call.name()) == "aten::_grouped_mm")
                                       ++count_;
                                     return std::unique_ptr<at::ObserverContext>();
                                   }).scopes({at::RecordScope::FUNCTION}));
  }
  ~GroupedProducts() { at::removeCallback(handle_); }
  GroupedProducts(const GroupedProducts&) = delete;
  GroupedProducts& operator=(const GroupedProducts&) = delete;
  int64_t count() const { return count_; }

 private:
  static inline thread_local int64_t count_ = 0;
  at::CallbackHandle handle_;
};

// A model directory as the binary reads it: a block's experts lie together, so that its prompts and
// its steps are computed in grouped products.
TEST_F(ExpertsGpu, AModelReadFromADirectoryTakesTheGroupedPath) {
  const TinyChat written(at::kBFloat16, [](RunConfig& config) {
    LlmConfig& llm = config.model.llm;
    llm.arch = LlmArch::kMixtral;
    llm.hidden_size = 64;
    llm.intermediate_size = 88;
    llm.head_dim = 16;
    llm.num_experts = 4;
  });
  const TempDir dir;
  const std::vector<Param*> params = written.loaded.model->params();
  write_model(dir.path("model"),
              {written.loaded.description,
               params,
               [](Param& param) { return param.value; },
               *written.loaded.tokenizer,
               {}},
              at::kBFloat16, /*llm_only=*/false, {});
  const auto answer = [](const LoadedModel& loaded, int64_t& products) {
    const GroupedProducts grouped;
    const std::vector<int32_t> ids =
        Generator(loaded, greedy(3), /*graphs=*/false).answer({{"human", "Hello"}}, {}).ids;
    products = grouped.count();
    return static_cast<int64_t>(ids.size());
  };
  const auto hidden = [](const LoadedModel& loaded) {
    const at::NoGradGuard no_grad;
    const Batch batch = pack({tiny_sample(*loaded.model, 1, 0, 40)}, 0, 0);
    return loaded.model->hidden(batch.to(loaded.model->device()), kPlain);
  };
  ModelLoadOptions options;
  options.template_name = "v1";
  options.device = at::Device(at::kCUDA, 0);
  int64_t products = 0;
  answer(load_model(dir.path("model"), options), products);
  EXPECT_EQ(products, 0) << "fp32 has no such kernel";
  options.dtype = at::kBFloat16;
  const LoadedModel half = load_model(dir.path("model"), options);
  const int64_t tokens = answer(half, products);
  // Three matrices of two blocks, for every token at least: the prompt's pass gives the first one.
  EXPECT_GT(tokens, 0);
  EXPECT_GE(products, 3 * 2 * tokens);
  const at::Tensor grouped = hidden(half);
  // The same weights, each for itself: the loop.
  for (Param* param : half.model->params()) param->value = param->value.clone();
  answer(half, products);
  EXPECT_EQ(products, 0);
  EXPECT_TRUE(near_l2(grouped, hidden(half), 2 * 2 * kRounding)) << "two blocks of two products";
}

}  // namespace
}  // namespace mgm
