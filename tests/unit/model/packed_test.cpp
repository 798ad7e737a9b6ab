// A decoder whose linears are packed: the function of the dequantised one, in training too.
#include <gtest/gtest.h>

#include "grad_check.h"
#include "ops/packed_weight.h"
#include "tiny_model.h"
#include "train/recompute.h"

namespace mgm {
namespace {

RunConfig packed_config(Quantize quantize, LlmArch arch = LlmArch::kLlama) {
  RunConfig c = tiny_config();
  c.model.llm.arch = arch;
  c.model.llm.quantize = quantize;
  if (arch == LlmArch::kMixtral) c.model.llm.num_experts = 3;
  c.model.adapter.kind = AdapterKind::kLora;
  c.model.adapter.rank = 3;
  c.model.adapter.dropout = 0.2;
  return c;
}

// The same model with the packed weights dequantised.
std::unique_ptr<TinyModel> dequantised(const TinyModel& packed) {
  RunConfig config = packed.config;
  config.model.llm.quantize = Quantize::kNone;
  auto out = std::make_unique<TinyModel>(config);
  for (const Param* param : packed.params) {
    out->store->assign(param->spec.name, param->packed.defined()
                                             ? ops::unpack_weight(param->packed, at::kFloat)
                                             : param->value.detach());
  }
  return out;
}

Batch two_samples(const MiniGemini& model) {
  return pack({tiny_sample(model, 2, 1, 9), tiny_sample(model, 3, 0, 9)}, 0, 0);
}

ForwardContext training(BlockRunner& runner) { return {runner, true, 7, 4}; }

TEST(Packed, LinearsOfTheBlocksAndNothingElse) {
  const TinyModel tiny(packed_config(Quantize::kNf4, LlmArch::kMixtral));
  int64_t packed = 0;
  for (const Param* param : tiny.params) {
    const bool is_packed = param->packed.defined();
    EXPECT_NE(is_packed, param->value.defined()) << param->spec.name;
    EXPECT_NE(is_packed, tiny.store->contains(param->spec.name)) << param->spec.name;
    packed += is_packed;
  }
  EXPECT_EQ(packed, 2 * (4 + 3 * 3));  // routers stay dense
}

TEST(Packed, HasTheFunctionAndTheGradientsOfTheDequantisedModel) {
  DirectRunner direct;
  for (const Quantize quantize : {Quantize::kNf4, Quantize::kInt8}) {
    for (const LlmArch arch :
         {LlmArch::kLlama, LlmArch::kQwen2, LlmArch::kPhi3, LlmArch::kMixtral}) {
      const TinyModel packed(packed_config(quantize, arch));
      const auto dense = dequantised(packed);
      const Batch batch = two_samples(packed.model);
      const at::Tensor loss = packed.model.loss_sum(batch, training(direct));
      const at::Tensor expected = dense->model.loss_sum(batch, training(direct));
      EXPECT_TRUE(near_l2(loss, expected, 1e-6));
      loss.backward();
      expected.backward();
      for (const Param* param : packed.params) {
        const std::string& name = param->spec.name;
        if (param->packed.defined()) continue;
        EXPECT_TRUE(near_l2(packed.grad(name), dense->grad(name), 1e-5)) << name;
      }
    }
  }
}

TEST(Packed, RecomputationGivesTheSameBits) {
  install_recompute_engine();
  DirectRunner direct;
  const RunConfig config = packed_config(Quantize::kNf4);
  const TinyModel once(config);
  const Batch batch = two_samples(once.model);
  once.model.loss_sum(batch, training(direct)).backward();
  for (const RecomputePolicy policy : {RecomputePolicy::kFull, RecomputePolicy::kSelective}) {
    const TinyModel again(config);
    const auto runner = make_recompute_runner({{"model.layers.*", policy}});
    again.model.loss_sum(batch, training(*runner)).backward();
    for (const Param* param : once.params) {
      if (param->packed.defined()) continue;
      EXPECT_TRUE(at::equal(once.grad(param->spec.name), again.grad(param->spec.name)))
          << param->spec.name;
    }
  }
}

TEST(Packed, PiecesOfAWeightMakeTheWhole) {
  RunConfig config = packed_config(Quantize::kNf4);
  const MiniGemini model(config.model, config.image);
  Param& param = *model.params()[1];
  ASSERT_EQ(param.spec.format, WeightFormat::kNf4);
  const at::Tensor value = redrawn(param.spec, 9);
  WeightPacker(at::kCPU, at::kBFloat16).add(param, 0, value);
  const PackedWeight whole = param.packed;
  param.packed = {};
  WeightPacker pieces(at::kCPU, at::kBFloat16);
  const at::Tensor flat = value.view(-1);
  pieces.add(param, 0, flat.narrow(0, 0, 100));
  EXPECT_FALSE(param.packed.defined());
  pieces.add(param, 100, flat.narrow(0, 100, flat.numel() - 100));
  EXPECT_TRUE(at::equal(param.packed.codes, whole.codes));
  EXPECT_TRUE(at::equal(param.packed.maxima, whole.maxima));
  EXPECT_TRUE(at::equal(ops::unpack_weight(whole, at::kFloat),
                        ops::unpack_weight(ops::pack_weight(value.to(at::kBFloat16).to(at::kFloat),
                                                            WeightFormat::kNf4),
                                           at::kFloat)));
}

}  // namespace
}  // namespace mgm
