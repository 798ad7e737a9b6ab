// A decoder in stages on different devices. The meta device, which has no memory, stands for the
// second one.
#include <gtest/gtest.h>

#include "unit/infer/tiny_chat.h"

namespace mgm {
namespace {

void five_blocks(RunConfig& config) { config.model.llm.num_layers = 5; }

TEST(Stages, SayWhereParametersBelong) {
  for (const bool tied : {false, true}) {
    RunConfig config = tiny_config();
    five_blocks(config);
    config.model.llm.tie_embeddings = tied;
    Decoder decoder(config.model.llm);
    for (const Param* param : decoder.params()) {
      EXPECT_EQ(decoder.device_of(param->spec.group, at::kMeta), at::kMeta);
    }
    decoder.split({{0, at::kCPU}, {3, at::kMeta}});
    for (int i = 0; i < 5; ++i) {
      const at::Device device = i < 3 ? at::kCPU : at::kMeta;
      EXPECT_EQ(decoder.device_of(cat("model.layers.", i), at::kCPU), device) << i;
      EXPECT_EQ(decoder.device_of(cat("model.layers.", i, ".experts"), at::kCPU), device) << i;
    }
    EXPECT_EQ(decoder.device_of("model.layers.30", at::kCPU), at::kCPU);
    EXPECT_EQ(decoder.device_of("model.embed_tokens", at::kCPU), at::kCPU);
    EXPECT_EQ(decoder.device_of("lm_head", at::kCPU), tied ? at::kCPU : at::kMeta);
  }
}

TEST(Stages, HaveToBeStages) {
  const auto split = [](std::vector<DecoderStage> stages) {
    RunConfig config = tiny_config();
    five_blocks(config);
    Decoder(config.model.llm).split(std::move(stages));
  };
  EXPECT_NO_THROW(split({{0, at::kCPU}, {4, at::kCPU}}));
  EXPECT_THROW(split({}), InternalError);
  EXPECT_THROW(split({{1, at::kCPU}}), InternalError);
  EXPECT_THROW(split({{0, at::kCPU}, {0, at::kCPU}}), InternalError);
  EXPECT_THROW(split({{0, at::kCPU}, {5, at::kCPU}}), InternalError);
}

// Where each group gets its input. Runs nothing on meta, where ATen lacks half of it.
class Watcher : public BlockRunner {
 public:
  Tensors run(const std::string& group, const Tensors& in, const BlockBody& body) override {
    devices.emplace(group, in[0].device());
    return in[0].is_meta() ? in : body(in);
  }
  std::map<std::string, at::Device> devices;
};

TEST(Stages, EverythingABlockNeedsIsOnItsDevice) {
  const TinyChat chat(at::kFloat, five_blocks);
  const MiniGemini& model = *chat.loaded.model;
  chat.loaded.model->split_decoder({{0, at::kCPU}, {2, at::kMeta}});
  for (Param* param : model.params()) {
    param->value = param->value.to(model.decoder().device_of(param->spec.group, at::kCPU));
  }
  EXPECT_EQ(model.decoder().head_device(), at::kMeta);
  EXPECT_EQ(model.device(), at::kCPU);
  Watcher watcher;
  const ForwardContext ctx{watcher};
  const Batch batch = pack({tiny_sample(model, 1, 1, 9)}, 0, 0);
  model.decoder().logits(model.hidden(batch, ctx), ctx);
  for (const auto& [group, device] : watcher.devices) {
    EXPECT_EQ(device, model.decoder().device_of(group, at::kCPU)) << group;
  }
  EXPECT_EQ(watcher.devices.at("model.layers.4"), at::kMeta);
  EXPECT_EQ(watcher.devices.at("lm_head"), at::kMeta);
  const KvCache cache = model.decoder().make_cache(3, 60, at::kFloat);
  for (size_t i = 0; i < 5; ++i) {
    for (const auto* layers : {&cache.keys, &cache.values, &cache.cos, &cache.sin}) {
      EXPECT_EQ((*layers)[i].device(), i < 2 ? at::kCPU : at::kMeta) << i;
    }
  }
  EXPECT_EQ(cache.capacity(), 60);
}

}  // namespace
}  // namespace mgm
