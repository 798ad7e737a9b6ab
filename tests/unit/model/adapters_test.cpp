// Low-rank adapters in the model: neutral at first, equal to merged weights, dropout that does not
// depend on how rows are batched or run again, targets that are named.
#include "model/adapters.h"

#include <gtest/gtest.h>

#include "grad_check.h"
#include "model/decoder.h"
#include "nn/init.h"
#include "tiny_model.h"
#include "train/recompute.h"

namespace mgm {
namespace {

RunConfig lora_config(double dropout = 0) {
  RunConfig c = tiny_config();
  c.model.adapter.kind = AdapterKind::kLora;
  c.model.adapter.rank = 3;
  c.model.adapter.alpha = 5;
  c.model.adapter.dropout = dropout;
  return c;
}

RunConfig mixtral_config(double dropout) {
  RunConfig c = lora_config(dropout);
  c.model.llm.arch = LlmArch::kMixtral;
  c.model.llm.num_experts = 5;
  return c;
}

std::vector<std::string> adapter_names(const MiniGemini& model) {
  std::vector<std::string> out;
  for (const Param* param : model.params()) {
    if (param->spec.name.find(".lora_") != std::string::npos) out.push_back(param->spec.name);
  }
  return out;
}

// The weights of `to` become those of the same name in `from`, in the dtype they are used in.
void copy_weights(const TinyModel& from, TinyModel& to) {
  for (const Param* param : from.params) {
    if (to.store->contains(param->spec.name)) {
      to.store->assign(param->spec.name, param->value.detach());
    }
  }
}

Batch batch_of(const MiniGemini& model, const std::vector<int64_t>& samples, int64_t epoch = 0) {
  std::vector<Sample> list;
  for (const int64_t index : samples) list.push_back(tiny_sample(model, index, index % 2, 9));
  return pack(list, 0, epoch);
}

DirectRunner g_direct;
const ForwardContext kPlain{g_direct};

ForwardContext training(BlockRunner& runner, int64_t step = 4) { return {runner, true, 7, step}; }

TEST(Adapters, EveryLinearOfTheBlocksHasOneByDefault) {
  const RunConfig c = lora_config();
  const MiniGemini model(c.model, c.image);
  const std::vector<std::string> names = adapter_names(model);
  EXPECT_EQ(names.size(), 2u * 2 * 7);  // blocks, A and B, linears
  EXPECT_EQ(names[0], "model.layers.0.self_attn.q_proj.lora_A.weight");
  EXPECT_EQ(names[1], "model.layers.0.self_attn.q_proj.lora_B.weight");
  for (const Linear* linear : model.decoder().linears()) {
    EXPECT_EQ(linear->lora_a().spec.shape,
              (std::vector<int64_t>{3, linear->weight().spec.shape[1]}));
    EXPECT_EQ(linear->lora_b().spec.shape,
              (std::vector<int64_t>{linear->weight().spec.shape[0], 3}));
    EXPECT_EQ(linear->lora_a().spec.group, linear->weight().spec.group);
  }
}

TEST(Adapters, OfEveryArchitecture) {
  RunConfig c = mixtral_config(0);
  const MiniGemini mixtral(c.model, c.image);
  EXPECT_EQ(adapter_names(mixtral).size(), 2u * 2 * (4 + 5 * 3));
  for (const std::string& name : adapter_names(mixtral)) {
    EXPECT_EQ(name.find("block_sparse_moe.gate"), std::string::npos) << name;
  }
  c = lora_config();
  c.model.llm.arch = LlmArch::kPhi3;
  const MiniGemini phi(c.model, c.image);
  EXPECT_EQ(adapter_names(phi).size(), 2u * 2 * 4);
}

TEST(Adapters, TargetsArePatternsOnNames) {
  RunConfig c = lora_config();
  c.model.adapter.targets = {"*.q_proj", "model.layers.1.mlp.down_proj.weight"};
  const MiniGemini model(c.model, c.image);
  EXPECT_EQ(adapter_names(model),
            (std::vector<std::string>{"model.layers.0.self_attn.q_proj.lora_A.weight",
                                      "model.layers.0.self_attn.q_proj.lora_B.weight",
                                      "model.layers.1.self_attn.q_proj.lora_A.weight",
                                      "model.layers.1.self_attn.q_proj.lora_B.weight",
                                      "model.layers.1.mlp.down_proj.lora_A.weight",
                                      "model.layers.1.mlp.down_proj.lora_B.weight"}));
  EXPECT_TRUE(check_targets(c.model.adapter, model.decoder().linears()).empty());
}

TEST(Adapters, ATargetThatNamesNothingIsToldTheNearestNames) {
  RunConfig c = lora_config();
  c.model.adapter.targets = {"*.q_proj", "*.k_prj", "model.mm_projector.0", "lm_head"};
  const MiniGemini model(c.model, c.image);
  const auto problems = check_targets(c.model.adapter, model.decoder().linears());
  ASSERT_EQ(problems.size(), 3u);
  EXPECT_EQ(problems[0].key, "model.adapter.targets[1]");
  EXPECT_EQ(problems[0].message,
            "'*.k_prj' names no linear of the language model's blocks; the nearest names are "
            "'model.layers.0.self_attn.k_proj' and the like, 2 of them");
  EXPECT_EQ(problems[1].message,
            "'model.mm_projector.0' names no linear of the language model's blocks; they end in "
            "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj");
  c.model.adapter.kind = AdapterKind::kNone;
  EXPECT_TRUE(check_targets(c.model.adapter, model.decoder().linears()).empty());
}

TEST(Adapters, ScaleIsAlphaByRankOrByItsRoot) {
  AdapterConfig c;
  c.rank = 16;
  c.alpha = 8;
  EXPECT_EQ(adapter_scale(c), 0.5);
  c.rslora = true;
  EXPECT_EQ(adapter_scale(c), 2);
}

TEST(Adapters, DrawnAsPeftDrawsThem) {
  RunConfig c = lora_config();
  c.model.adapter.rank = 200;
  const MiniGemini model(c.model, c.image);
  const Param& a = model.decoder().linears()[0]->lora_a();
  at::Tensor values = at::empty({a.spec.numel()});
  init_range(a.spec, 3, 0, values);
  const double bound = 1 / std::sqrt(24.0);  // kaiming_uniform_(a = sqrt(5)) of fan-in 24
  EXPECT_LE(values.abs().max().item<double>(), bound);
  EXPECT_GT(values.abs().max().item<double>(), 0.99 * bound);
  EXPECT_NEAR(values.std().item<double>(), bound / std::sqrt(3.0), 0.02 * bound);
  const Param& b = model.decoder().linears()[0]->lora_b();
  values = at::ones({b.spec.numel()});
  init_range(b.spec, 3, 0, values);
  EXPECT_EQ(values.abs().max().item<double>(), 0);
}

TEST(Adapters, WithBAtZeroNothingChanges) {
  TinyModel adapted(lora_config()), plain(tiny_config());
  copy_weights(adapted, plain);
  const Batch batch = batch_of(plain.model, {1, 2});
  const at::Tensor expected = plain.model.loss_sum(batch, kPlain);
  EXPECT_FALSE(at::equal(adapted.model.loss_sum(batch, kPlain), expected));
  for (const Linear* linear : adapted.model.decoder().linears()) {
    adapted.store->assign(linear->lora_b().spec.name, at::zeros(linear->lora_b().spec.shape));
  }
  EXPECT_TRUE(at::equal(adapted.model.loss_sum(batch, kPlain), expected));
}

TEST(Adapters, EqualTheMergedWeights) {
  TinyModel adapted(lora_config(), at::kDouble), plain(tiny_config(), at::kDouble);
  copy_weights(adapted, plain);
  for (const Linear* linear : adapted.model.decoder().linears()) {
    const at::Tensor delta = linear->lora_b().value.detach().mm(linear->lora_a().value.detach());
    const std::string& name = linear->weight().spec.name;
    plain.store->assign(name, linear->weight().value.detach() + delta * (5.0 / 3));
  }
  const Batch batch = batch_of(plain.model, {1, 2});
  EXPECT_TRUE(
      near_l2(adapted.model.hidden(batch, kPlain), plain.model.hidden(batch, kPlain), 1e-12));
  TinyModel bare(tiny_config(), at::kDouble);
  copy_weights(adapted, bare);
  EXPECT_FALSE(
      near_l2(adapted.model.hidden(batch, kPlain), bare.model.hidden(batch, kPlain), 1e-3));
}

TEST(Adapters, DropoutDoesNotDependOnTheBatch) {
  for (const RunConfig& config : {lora_config(0.3), mixtral_config(0.3)}) {
    TinyModel together(config, at::kDouble), alone(config, at::kDouble);
    const std::vector<int64_t> samples = {4, 0, 7, 2};  // no pictures where drop path would differ
    together.model.loss_sum(batch_of(together.model, samples), training(g_direct)).backward();
    for (const int64_t sample : samples) {
      alone.model.loss_sum(batch_of(alone.model, {sample}), training(g_direct)).backward();
    }
    for (const std::string& name : adapter_names(together.model)) {
      EXPECT_TRUE(near_l2(together.grad(name), alone.grad(name), 1e-10)) << name;
    }
  }
}

TEST(Adapters, DropoutIsOfTrainingAndOfItsStepSampleAndEpoch) {
  const TinyModel tiny(lora_config(0.3));
  const Batch batch = batch_of(tiny.model, {2, 4});
  const auto hidden = [&](const Batch& b, const ForwardContext& ctx) {
    return tiny.model.hidden(b, ctx).detach();
  };
  const at::Tensor first = hidden(batch, training(g_direct));
  EXPECT_TRUE(at::equal(hidden(batch, training(g_direct)), first));
  EXPECT_FALSE(at::equal(hidden(batch, training(g_direct, 5)), first));
  EXPECT_FALSE(at::equal(hidden(batch_of(tiny.model, {2, 4}, 1), training(g_direct)), first));
  const at::Tensor calm = hidden(batch, kPlain);
  EXPECT_FALSE(at::equal(calm, first));
  EXPECT_TRUE(at::equal(hidden(batch, kPlain), calm));
}

TEST(Adapters, RecomputationDropsTheSameToTheBit) {
  install_recompute_engine();
  for (const RunConfig& config : {lora_config(0.3), mixtral_config(0.3)}) {
    TinyModel once(config), again(config);
    const Batch batch = batch_of(once.model, {2, 3});
    once.model.loss_sum(batch, training(g_direct)).backward();
    const auto runner = make_recompute_runner({{"model.layers.*", RecomputePolicy::kFull}});
    again.model.loss_sum(batch, training(*runner)).backward();
    for (const Param* param : once.params) {
      const std::string& name = param->spec.name;
      EXPECT_TRUE(at::equal(once.grad(name), again.grad(name))) << name;
    }
  }
}

TEST(Adapters, FrozenBasesGetNoGradientAndAdaptersTheirs) {
  RunConfig c = lora_config();
  TrainRule rule;
  rule.preset = RulePreset::kAdapter;
  c.train.rules = {rule};
  TinyModel tiny(c), whole(lora_config());
  copy_weights(whole, tiny);
  const Batch batch = batch_of(tiny.model, {1, 2});
  tiny.model.loss_sum(batch, kPlain).backward();
  whole.model.loss_sum(batch, kPlain).backward();
  for (const Param* param : tiny.params) {
    const std::string& name = param->spec.name;
    const bool adapter = name.find(".lora_") != name.npos;
    EXPECT_EQ(param->value.requires_grad(), adapter) << name;
    if (adapter) {
      EXPECT_TRUE(near_l2(tiny.grad(name), whole.grad(name), 1e-6)) << name;
    }
  }
}

}  // namespace
}  // namespace mgm
