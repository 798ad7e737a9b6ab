// The whole model: declared without storage, packed or alone the same, text without encoders,
// gradients everywhere they belong.
#include "model/mini_gemini.h"

#include <gtest/gtest.h>

#include "grad_check.h"
#include "tiny_model.h"

namespace mgm {
namespace {

DirectRunner g_direct;
const ForwardContext kPlain{g_direct};

TEST(MiniGemini, ConstructionAllocatesNothing) {
  RunConfig config;  // the defaults are the 7B model
  config.model.hr_encoder = HrEncoder::kConvnextLarge;
  ASSERT_TRUE(resolve_and_check(config).size() <= 1);  // run.dir at most
  const MiniGemini model(config.model, config.image);
  int64_t total = 0;
  for (const Param* param : model.params()) {
    EXPECT_FALSE(param->value.defined()) << param->spec.name;
    total += param->spec.numel();
  }
  EXPECT_EQ(total, 7266093504);
}

TEST(MiniGemini, WithoutHrEncoderThereIsNoMining) {
  RunConfig config = tiny_config();
  config.model.hr_encoder = HrEncoder::kNone;
  TinyModel tiny(config);
  for (const Param* param : tiny.params) {
    EXPECT_EQ(param->spec.name.find("vlm_uni"), std::string::npos);
    EXPECT_EQ(param->spec.name.find("vision_tower_aux"), std::string::npos);
  }
  const at::Tensor loss =
      tiny.model.loss_sum(pack({tiny_sample(tiny.model, 1, 2, 9)}, 0, 0), kPlain);
  EXPECT_TRUE(std::isfinite(loss.item<float>()));
}

TEST(MiniGemini, TextNeverTouchesTheEncoders) {
  TinyModel tiny(tiny_config());
  const Batch batch = pack({tiny_sample(tiny.model, 1, 0, 9)}, 0, 0);
  const float expected = tiny.model.loss_sum(batch, kPlain).item<float>();
  for (Param* param : tiny.params) {
    const std::string& name = param->spec.name;
    if (name.find("vision_tower") != name.npos || name.find("vlm_uni") != name.npos ||
        name.find("mm_projector") != name.npos) {
      param->value.reset();  // whoever looks at it fails
    }
  }
  EXPECT_EQ(tiny.model.loss_sum(batch, kPlain).item<float>(), expected);
}

TEST(MiniGemini, PackedEqualsAlone) {
  TinyModel packed(tiny_config());
  TinyModel alone(tiny_config());
  std::vector<Sample> samples;
  for (const int64_t pictures : {1, 0, 2, 1}) {
    const auto index = static_cast<int64_t>(samples.size());
    samples.push_back(tiny_sample(packed.model, index, pictures, 6 + 5 * index));
  }
  const Batch batch = pack(samples, 0, 0);
  const at::Tensor together = packed.model.loss_sum(batch, kPlain);
  together.backward();
  double sum = 0;
  const at::Tensor hidden = packed.model.hidden(batch, kPlain);
  for (size_t i = 0; i < samples.size(); ++i) {
    const Batch single = pack({samples[i]}, 0, 0);
    const at::Tensor loss = alone.model.loss_sum(single, kPlain);
    loss.backward();
    sum += loss.item<double>();
    const int64_t begin = batch.seq.offsets[i], end = batch.seq.offsets[i + 1];
    EXPECT_TRUE(near_l2(hidden.slice(0, begin, end), alone.model.hidden(single, kPlain), 2e-6));
  }
  EXPECT_NEAR(together.item<double>(), sum, 1e-5 * sum);
  for (const Param* param : packed.params) {
    const std::string& name = param->spec.name;
    const at::Tensor mine = packed.grad(name), theirs = alone.grad(name);
    if (theirs.norm().item<double>() < 1e-5) {  // mathematically zero (CLIP's key biases)
      EXPECT_LT(mine.norm().item<double>(), 1e-4) << name;
    } else {
      EXPECT_TRUE(near_l2(mine, theirs, 2e-5)) << name;
    }
  }
}

TEST(MiniGemini, OtherSegmentsStayTheSameToTheBit) {
  const TinyModel tiny(tiny_config());
  std::vector<Sample> samples;
  for (int64_t i = 0; i < 3; ++i) samples.push_back(tiny_sample(tiny.model, i, 1, 11));
  const Batch before_batch = pack(samples, 0, 0);
  const at::Tensor before = tiny.model.hidden(before_batch, kPlain);
  samples[1] = tiny_sample(tiny.model, 77, 1, 11);
  const at::Tensor after = tiny.model.hidden(pack(samples, 0, 0), kPlain);
  for (const size_t i : {0u, 2u}) {
    const int64_t begin = before_batch.seq.offsets[i], end = before_batch.seq.offsets[i + 1];
    EXPECT_TRUE(at::equal(before.slice(0, begin, end), after.slice(0, begin, end)));
  }
  const int64_t begin = before_batch.seq.offsets[1], end = before_batch.seq.offsets[2];
  EXPECT_FALSE(at::equal(before.slice(0, begin, end), after.slice(0, begin, end)));
}

TEST(MiniGemini, TrainedTowersGetGradientsEverywhere) {
  TinyModel tiny(tiny_config());
  tiny.model.loss_sum(pack({tiny_sample(tiny.model, 3, 2, 12)}, 0, 0), kPlain).backward();
  const int64_t used_clip_blocks = 2;  // select_layer -2 of 3: the last block is never run
  for (const Param* param : tiny.params) {
    const std::string& name = param->spec.name;
    const double norm = tiny.grad(name).norm().item<double>();
    const bool unused =
        name.find(cat("vision_model.encoder.layers.", used_clip_blocks)) != name.npos ||
        name.find("post_layernorm") != name.npos;
    // Softmax is blind to what all keys share.
    const bool zero = unused || name.find("k_proj.bias") != name.npos ||
                      name == "model.vlm_uni_aux_projector.0.bias" ||
                      name == "model.vlm_uni_aux_projector.1.bias";
    if (zero) {
      EXPECT_LT(norm, 1e-4) << name;
    } else {
      EXPECT_GT(norm, 1e-4) << name;
    }
  }
}

TEST(MiniGemini, AbsorbedMiningEqualsTheLiteralForm) {
  RunConfig config = tiny_config();
  config.image.grid = 2;
  config.image.global = true;
  const TinyModel absorbed(config, at::kDouble);
  config.model.mining.kernel = MiningKernel::kReference;
  const TinyModel literal(config, at::kDouble);
  const Batch batch = pack({tiny_sample(absorbed.model, 5, 2, 8)}, 0, 0);
  const at::Tensor a = absorbed.model.loss_sum(batch, kPlain);
  const at::Tensor b = literal.model.loss_sum(batch, kPlain);
  EXPECT_NEAR(a.item<double>(), b.item<double>(), 1e-12 * b.item<double>());
}

TEST(MiniGemini, IllegalGeometryIsRefusedWithNumbers) {
  RunConfig config = tiny_config();
  config.image.hr_size = 100;
  try {
    const MiniGemini model(config.model, config.image);
    FAIL() << "a 100 px canvas over 3 x 3 tokens was accepted";
  } catch (const ConfigError& e) {
    const std::string message = e.what();
    EXPECT_NE(message.find("image.hr_size"), message.npos) << message;
    EXPECT_NE(message.find("96"), message.npos) << message;  // the nearest legal size
  }
}

}  // namespace
}  // namespace mgm
