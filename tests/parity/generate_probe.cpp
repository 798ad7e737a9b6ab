// Continues prompts with the language model of a Hugging Face directory, for
// tests/parity/test_generation_parity.py.
//   generate_probe DIR IN.safetensors OUT.safetensors ROWS [cpu|cuda|cuda-graphs]
//   generate_probe DIR IN.safetensors OUT.safetensors BEAMS LENGTH_PENALTY REPETITION_PENALTY
// IN: ids int64 [T] and offsets int64 [P + 1] of P prompts, tokens int64 [1]: how many to add to
// each at most, and for beam search stops int64 [S]. OUT: ids int64 [P, tokens], greedy, ROWS
// prompts at a time, the next ones entering while others are under way; or by beam search, -1
// behind the end, and scores fp64 [P].
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <iostream>

#include "assemble/hf_config.h"
#include "base/error.h"
#include "checkpoint/tensor_writer.h"
#include "checkpoint/weight_loader.h"
#include "config/llm_arch.h"
#include "data/pack.h"
#include "infer/beam_search.h"
#include "infer/row_decoder.h"
#include "infer/sampler.h"
#include "types/vector_math.h"

namespace mgm {
namespace {

struct Model {
  LlmConfig config;
  std::unique_ptr<Decoder> decoder;
};

Model load(const fs::path& dir, at::Device device = at::kCPU) {
  Model out;
  const fs::path path = dir / "config.json";
  read_llm_config(Json::parse(read_file(path)), path.string(), out.config);
  out.decoder = std::make_unique<Decoder>(out.config);
  load_weights(out.decoder->params(), *open_model_dir(dir), LoadOptions());
  for (Param* param : out.decoder->params()) param->value = param->value.to(device);
  return out;
}

std::vector<Sample> read_prompts(const TensorSource& in) {
  const at::Tensor ids = in.read("ids").clone(), offsets = in.read("offsets").clone();
  const int64_t* border = offsets.const_data_ptr<int64_t>();
  std::vector<Sample> out;
  for (int64_t i = 0; i + 1 < offsets.numel(); ++i) {
    const int64_t* first = ids.const_data_ptr<int64_t>();
    Sample sample;
    sample.ids.assign(first + border[i], first + border[i + 1]);
    sample.labels.assign(sample.ids.size(), kIgnoreIndex);
    out.push_back(std::move(sample));
  }
  return out;
}

// Prompt p enters at step p / 2, so that rows of every age are decoded together.
at::Tensor greedy(const Model& model, const std::vector<Sample>& prompts, int64_t tokens,
                  int64_t rows, bool graphs) {
  size_t longest = 0;
  for (const Sample& p : prompts) longest = std::max(longest, p.ids.size());
  DirectRunner runner;
  const ForwardContext ctx{runner};
  const at::Device device = model.decoder->head_device();
  const bool recordable = unrecordable(*model.decoder, at::kFloat).empty();
  const auto recorder = graphs && recordable ? make_graph_recorder(device) : nullptr;
  RowDecoder decoder(*model.decoder, rows, static_cast<int64_t>(longest) + tokens,
                     at::TensorOptions(device).dtype(at::kFloat), recorder.get());
  RowSampler sampler(SamplingConfig(), rows, model.config.vocab_size, device);
  std::vector<std::vector<int64_t>> out(prompts.size());
  std::vector<size_t> active;
  const auto choose = [&](int64_t first, const at::Tensor& logits) {
    const RowSampler::Choice choice = sampler.choose(first, logits);
    decoder.put(first, choice.ids_R);
    for (size_t i = choice.ids.size(); i-- > 0;) {
      const size_t row = static_cast<size_t>(first) + i;
      std::vector<int64_t>& ids = out[active[row]];
      ids.push_back(choice.ids[i]);
      if (static_cast<int64_t>(ids.size()) < tokens) continue;
      active[row] = active.back();
      active.pop_back();
      decoder.remove(static_cast<int64_t>(row));
      sampler.remove(static_cast<int64_t>(row));
    }
  };
  size_t next = 0;
  for (size_t step = 0; next < prompts.size() || !active.empty(); ++step) {
    std::vector<Sample> entering;
    while (next < prompts.size() && next / 2 <= step &&
           static_cast<int64_t>(active.size()) < rows) {
      entering.push_back(prompts[next]);
      sampler.add({}, next);
      active.push_back(next++);
    }
    const auto before = static_cast<int64_t>(active.size() - entering.size());
    if (!entering.empty()) {
      const Batch batch = pack(entering, 0, 0).to(device);
      choose(before, decoder.add(model.decoder->embed(batch.input_ids, ctx), batch, ctx));
    }
    if (!active.empty()) choose(0, decoder.step(ctx));
  }
  MGM_CHECK((decoder.graphs().replayed() > 0) == (recorder != nullptr), decoder.graphs().replayed(),
            " steps replayed");
  at::Tensor ids = at::empty({static_cast<int64_t>(prompts.size()), tokens}, at::kLong);
  for (size_t p = 0; p < prompts.size(); ++p) {
    ids[static_cast<int64_t>(p)].copy_(at::tensor(out[p], at::kLong));
  }
  return ids;
}

std::map<std::string, at::Tensor> beams(const Model& model, const std::vector<Sample>& prompts,
                                        int64_t tokens, const BeamConfig& config) {
  DirectRunner runner;
  const ForwardContext ctx{runner};
  const auto count = static_cast<int64_t>(prompts.size());
  const at::Tensor ids = at::full({count, tokens}, -1, at::kLong);
  const at::Tensor scores = at::empty({count}, at::kDouble);
  for (int64_t p = 0; p < count; ++p) {
    const Sample& prompt = prompts[static_cast<size_t>(p)];
    const auto length = static_cast<int64_t>(prompt.ids.size());
    RowDecoder rows(*model.decoder, config.num_beams, length + tokens, at::kFloat);
    const Batch batch = pack({prompt}, 0, 0);
    const at::Tensor logits = rows.add(model.decoder->embed(batch.input_ids, ctx), batch, ctx);
    const std::vector<int32_t> prompt_ids(prompt.ids.begin(), prompt.ids.end());
    const BeamResult best = beam_search(rows, logits, prompt_ids, tokens, config, ctx);
    const std::vector<int64_t> found(best.ids.begin(), best.ids.end());
    ids[p].narrow(0, 0, static_cast<int64_t>(found.size())).copy_(at::tensor(found, at::kLong));
    scores[p].fill_(best.score);
  }
  return {{"ids", ids}, {"scores", scores}};
}

void run(const std::vector<std::string>& args) {
  const at::NoGradGuard no_grad;
  const std::string device = args.size() == 5 ? args[4] : "cpu";
  const Model model = load(args[0], at::Device(split(device, '-')[0]));
  const SourcePtr in = open_safetensors(args[1]);
  const int64_t tokens = in->read("tokens").const_data_ptr<int64_t>()[0];
  const std::vector<Sample> prompts = read_prompts(*in);
  const int64_t rows = std::stoll(args[3]);
  if (args.size() < 6) {
    at::globalContext().setAllowTF32CuBLAS(false);
    const bool graphs = device == "cuda-graphs";
    write_safetensors(args[2], {{"ids", greedy(model, prompts, tokens, rows, graphs)}});
    return;
  }
  BeamConfig config;
  config.num_beams = rows;
  config.length_penalty = std::stod(args[4]);
  config.repetition_penalty = std::stod(args[5]);
  const at::Tensor stops = in->read("stops");
  for (int64_t i = 0; i < stops.numel(); ++i) {
    config.stop_ids.push_back(static_cast<int32_t>(stops.const_data_ptr<int64_t>()[i]));
  }
  config.vocabulary = model.config.vocab_size;
  write_safetensors(args[2], beams(model, prompts, tokens, config));
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  if (argc < 5 || argc > 7) return 2;
  mgm::settle_vector_math();
  try {
    mgm::run({argv + 1, argv + argc});
    return 0;
  } catch (const mgm::Error& e) {
    std::cerr << e.what() << "\n";
    return static_cast<int>(e.code());
  }
}
