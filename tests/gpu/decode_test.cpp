// Decode steps on a GPU: replayed from CUDA graphs as launched one by one, and over two GPUs as on
// one.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include "gpu/gpu.h"
#include "gpu/no_waits.h"
#include "grad_check.h"
#include "infer/row_decoder.h"
#include "train/device.h"
#include "unit/infer/tiny_chat.h"

namespace mgm {
namespace {

const at::Device kGpu(at::kCUDA, 0);

// Heads of width 16, which the kernel takes.
void kernel_heads(RunConfig& config) {
  config.model.llm.hidden_size = 64;
  config.model.llm.head_dim = 16;
  config.model.llm.num_layers = 3;
}

std::vector<std::pair<std::string, std::function<void(RunConfig&)>>> variants() {
  const auto with = [](const std::function<void(LlmConfig&)>& change) {
    return [change](RunConfig& config) {
      kernel_heads(config);
      change(config.model.llm);
    };
  };
  return {{"llama", kernel_heads},
          {"gemma2", with([](LlmConfig& llm) {
             llm.arch = LlmArch::kGemma2;
             llm.sliding_window = 12;
             llm.attention_softcap = 2;
             llm.final_softcap = 5;
             llm.tie_embeddings = true;
           })},
          {"qwen2", with([](LlmConfig& llm) { llm.arch = LlmArch::kQwen2; })},
          {"qwen3", with([](LlmConfig& llm) { llm.arch = LlmArch::kQwen3; })},
          {"mistral", with([](LlmConfig& llm) {
             llm.arch = LlmArch::kMistral;
             llm.sliding_window = 9;
           })},
          {"phi3 longrope", with([](LlmConfig& llm) {
             llm.arch = LlmArch::kPhi3;
             llm.rope_scaling.type = RopeType::kLongrope;
             llm.rope_scaling.factor = 4;
             llm.rope_scaling.original_max_positions = 512;
             llm.rope_scaling.short_factor = {1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.4};
           })},
          {"packed", with([](LlmConfig& llm) { llm.quantize = Quantize::kNf4; })}};
}

// The model's weights, packed where they are held so, where they belong.
void move(const TinyChat& chat, at::ScalarType dtype) {
  const Decoder& decoder = chat.loaded.model->decoder();
  for (Param* param : chat.loaded.model->params()) {
    const at::Device device = decoder.device_of(param->spec.group, kGpu);
    if (param->spec.format == WeightFormat::kDense) {
      param->value = param->value.to(device, dtype);
    } else {
      WeightPacker(device, dtype).add(*param, 0, param->value);
      param->value = at::Tensor();
    }
  }
}

// The same with the matrices of a block's experts in one place each, as loading leaves them.
void move_together(const TinyChat& chat, at::ScalarType dtype) {
  move(chat, dtype);
  std::map<std::string, std::vector<Param*>> matrices;
  for (Param* param : chat.loaded.model->params()) {
    if (param->spec.expert < 0) continue;
    std::string matrix = param->spec.name;
    const std::string number = cat(".experts.", param->spec.expert, ".");
    matrix.replace(matrix.find(number), number.size(), ".experts.*.");
    matrices[matrix].push_back(param);
  }
  for (const auto& [name, params] : matrices) {
    std::vector<at::Tensor> values;
    for (const Param* param : params) values.push_back(param->value);
    const at::Tensor all = at::stack(values);
    for (size_t i = 0; i < params.size(); ++i) {
      params[i]->value = all[static_cast<int64_t>(i)];
    }
  }
}

int64_t reserved_bytes() {
  return c10::cuda::CUDACachingAllocator::getDeviceStats(0).reserved_bytes[0].current;
}

class DecodeGpu : public GpuTest {
 protected:
  // Greedy tokens of several prompts whose rows come and go; the replayed steps in `replayed`.
  static std::vector<std::vector<int64_t>> decode(const TinyChat& chat, StepRecorder* recorder,
                                                  at::Tensor& last_logits, int64_t& replayed) {
    const at::NoGradGuard no_grad;
    const MiniGemini& model = *chat.loaded.model;
    RowDecoder rows(model.decoder(), 3, 80, at::TensorOptions(kGpu).dtype(model.dtype()), recorder);
    std::vector<std::vector<int64_t>> out;
    std::vector<size_t> active;
    const auto choose = [&](int64_t first, const at::Tensor& logits) {
      const at::Tensor ids = logits.argmax(-1);
      rows.put(first, ids);
      for (int64_t i = 0; i < ids.size(0); ++i) {
        out[active[static_cast<size_t>(first + i)]].push_back(ids[i].item<int64_t>());
      }
      last_logits = logits.clone();
    };
    const auto add = [&](int64_t index, int64_t tokens) {
      const Batch batch = pack({tiny_sample(model, index, 0, tokens)}, 0, 0).to(kGpu);
      active.push_back(out.size());
      out.emplace_back();
      const auto first = static_cast<int64_t>(active.size()) - 1;
      choose(first, rows.add(model.embed(batch, kPlain), batch, kPlain));
    };
    const auto steps = [&](int count) {
      for (int i = 0; i < count; ++i) choose(0, rows.step(kPlain));
    };
    add(1, 20);
    steps(6);
    add(2, 7);
    add(3, 33);
    steps(8);
    rows.remove(0);
    active[0] = active.back();
    active.pop_back();
    steps(4);
    add(4, 9);
    steps(5);
    replayed = rows.graphs().replayed();
    return out;
  }
};

TEST_F(DecodeGpu, GraphsGiveTheTokensOfStepsThatRun) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [name, change] : variants()) {
      const TinyChat chat(at::kFloat, change);
      move(chat, dtype);
      ASSERT_EQ(unrecordable(chat.loaded.model->decoder(), dtype), "") << name;
      const auto recorder = make_graph_recorder(kGpu);
      ASSERT_NE(recorder, nullptr);
      at::Tensor plain, replayed;
      int64_t none = 0, steps = 0;
      const auto expected = decode(chat, nullptr, plain, none);
      EXPECT_EQ(none, 0);
      for (int twice = 0; twice < 2; ++twice) {  // a recorder serves one cache after another
        EXPECT_EQ(decode(chat, recorder.get(), replayed, steps), expected) << name << ' ' << dtype;
        EXPECT_TRUE(at::equal(replayed, plain)) << name << ' ' << dtype;
        EXPECT_EQ(steps, 5 + 7 + 3 + 5) << name;
      }
    }
  }
}

TEST_F(DecodeGpu, GeneratorsAnswerAlikeWithAndWithoutGraphs) {
  const TinyChat chat(at::kFloat, kernel_heads);
  move(chat, at::kBFloat16);
  std::vector<BatchPrompt> prompts;
  for (const char* text : {"Hello", "What is a bus?", "Say it again, please.", "Where?", "Who?"}) {
    prompts.push_back({{{"human", text}}, {}, "test"});
  }
  SamplingConfig beams = greedy(9);
  beams.num_beams = 3;
  SamplingConfig drawn = greedy(12);
  drawn.temperature = 1;
  for (const SamplingConfig& sampling : {greedy(16), beams, drawn}) {
    std::map<size_t, std::vector<int32_t>> answers[2];
    for (const bool graphs : {false, true}) {
      const BatchStats stats = Generator(chat.loaded, sampling, graphs)
                                   .answer_batch(prompts, 3, [&](size_t i, const Answer& a) {
                                     answers[graphs][i] = a.ids;
                                   });
      EXPECT_EQ(stats.graph_steps > 0, graphs);
      EXPECT_EQ(stats.graphs > 0, graphs);
      EXPECT_LT(stats.graph_steps, stats.steps);
    }
    EXPECT_EQ(answers[0], answers[1]);
  }
}

// In bf16 the experts of a block are one product and their steps are recorded; in fp32 the host
// counts visits and they are not.
TEST_F(DecodeGpu, ExpertsAreDecodedAlikeWithAndWithoutGraphs) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const TinyChat chat(at::kFloat, [](RunConfig& config) {
      kernel_heads(config);
      config.model.llm.arch = LlmArch::kMixtral;
      config.model.llm.num_experts = 4;
      config.model.llm.intermediate_size = 64;
    });
    move_together(chat, dtype);
    const bool recorded = unrecordable(chat.loaded.model->decoder(), dtype).empty();
    EXPECT_EQ(recorded, dtype == at::kBFloat16);
    at::Tensor logits[2];
    int64_t replayed[2] = {0, 0};
    const auto plain = decode(chat, nullptr, logits[0], replayed[0]);
    const auto recorder = recorded ? make_graph_recorder(kGpu) : nullptr;
    EXPECT_EQ(decode(chat, recorder.get(), logits[1], replayed[1]), plain);
    EXPECT_TRUE(at::equal(logits[0], logits[1]));
    EXPECT_EQ(replayed[1] > 0, recorded);
  }
}

// Nor does a step that is launched kernel by kernel wait for the GPU or ask it for memory.
TEST_F(DecodeGpu, StepsWaitNowhereAndAllocateNothing) {
  auto all = variants();
  all.emplace_back("mixtral", [](RunConfig& config) {
    kernel_heads(config);
    config.model.llm.arch = LlmArch::kMixtral;
    config.model.llm.num_experts = 4;
    config.model.llm.intermediate_size = 64;
  });
  const at::NoGradGuard no_grad;
  for (const auto& [name, change] : all) {
    const TinyChat chat(at::kFloat, change);
    move_together(chat, at::kBFloat16);
    const MiniGemini& model = *chat.loaded.model;
    RowDecoder rows(model.decoder(), 2, 80, at::TensorOptions(kGpu).dtype(model.dtype()), nullptr);
    const Batch batch = pack({tiny_sample(model, 1, 0, 9)}, 0, 0).to(kGpu);
    rows.put(0, rows.add(model.embed(batch, kPlain), batch, kPlain).argmax(-1));
    const auto steps = [&](int count) {
      for (int i = 0; i < count; ++i) rows.put(0, rows.step(kPlain).argmax(-1));
    };
    steps(3);  // first calls set up
    const int64_t reserved = reserved_bytes();
    {
      const NoWaits no_waits;
      ASSERT_NO_THROW(steps(20)) << name;
    }
    EXPECT_EQ(reserved_bytes(), reserved) << name;
  }
}

TEST_F(DecodeGpu, AStepThatWaitsIsRefusedAndTheGpuGoesOn) {
  const auto recorder = make_graph_recorder(kGpu);
  const at::Tensor x = at::ones({100}, kGpu);
  EXPECT_THROW(recorder->record([&] { return x + x.sum().item<float>(); }), InternalError);
  EXPECT_EQ((x + 1).sum().item<float>(), 200);
  const auto step = recorder->record([&] { return x * 3; });
  EXPECT_EQ(step->replay().sum().item<float>(), 300);
  x.fill_(2);
  EXPECT_EQ(step->replay().sum().item<float>(), 600);
}

// What graphs of one answer leave behind serves the next answer's.
TEST_F(DecodeGpu, MemoryOfManyAnswersDoesNotAddUp) {
  const TinyChat chat(at::kFloat, kernel_heads);
  move(chat, at::kBFloat16);
  const Generator generator(chat.loaded, greedy(12));
  const auto answer = [&](int i) {
    return generator.answer({{"human", std::string(static_cast<size_t>(i % 7 + 1), 'a')}}, {});
  };
  for (int i = 0; i < 7; ++i) answer(i);
  const int64_t before = reserved_bytes();
  for (int i = 0; i < 200; ++i) answer(i);
  EXPECT_EQ(reserved_bytes(), before);
}

TEST_F(DecodeGpu, WithoutMemoryForAGraphStepsRun) {
  const auto recorder = make_graph_recorder(kGpu);
  StepGraphs graphs(recorder.get());
  const at::Tensor x = at::ones({4}, kGpu);
  const auto run = [&](int64_t rows, bool too_much) {
    return graphs.run(rows, [&] {
      const bool recording =
          c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
      if (too_much && recording) at::empty({int64_t{1} << 42}, x.options());  // 16 TiB
      return x + 1;
    });
  };
  for (const bool too_much : {false, true}) {
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(run(too_much ? 2 : 1, too_much).sum().item<float>(), 8);
    }
  }
  EXPECT_EQ(graphs.recorded(), 1);
  EXPECT_TRUE(recorder->given_up());
  EXPECT_EQ(run(1, false).sum().item<float>(), 8);
  EXPECT_EQ(graphs.replayed(), 2);
}

TEST_F(DecodeGpu, TwoGpusAnswerAsOneDoes) {
  if (visible_gpus() < 2) {
    if (gpu_required()) FAIL() << "MGM_TEST_REQUIRE=gpu, but there are no two GPUs";
    GTEST_SKIP() << "NOT RUN: needs two GPUs";
  }
  for (const auto& [name, change] : variants()) {
    const TinyChat one(at::kFloat, change), two(at::kFloat, change);
    two.loaded.model->split_decoder({{0, kGpu}, {1, at::Device(at::kCUDA, 1)}});
    move(one, at::kFloat);
    move(two, at::kFloat);
    EXPECT_EQ(two.loaded.model->decoder().make_cache(1, 4, kGpu).keys[2].device().index(), 1);
    SamplingConfig beams = greedy(9);
    beams.num_beams = 3;
    for (const SamplingConfig& sampling : {greedy(16), beams}) {
      const std::vector<Turn> turns = {{"human", "<image>\nWhich colour has the bus?"}};
      const auto answer = [&](const TinyChat& chat) {
        const at::Tensor visual =
            encode_pictures(chat.loaded, chat.pictures(1), ForwardContext{g_direct});
        return Generator(chat.loaded, sampling, /*graphs=*/false).answer(turns, visual).ids;
      };
      EXPECT_EQ(answer(two), answer(one)) << name;
    }
  }
}

}  // namespace
}  // namespace mgm
