// Runs the language model of a Hugging Face directory for tests/parity/test_backbone_parity.py.
//   decoder_probe DIR IN.safetensors OUT.safetensors none|full|selective float32|bfloat16 cpu|cuda
//     [ADAPTER]
// IN: ids int64 [T], offsets int64 [segments + 1] of the packed stream. OUT: logits [T, V]; loss,
// the sum of next-token cross entropies within segments; its gradient as grad.NAME of every
// parameter; cached, the logits of the first segment fed to a cache in pieces. The fourth argument
// is the recomputation of the blocks, the sixth the device, ADAPTER a directory in PEFT's layout.
// Refused: the message and the error's exit code.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <iostream>

#include "assemble/adapter_dir.h"
#include "assemble/hf_config.h"
#include "base/error.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/tensor_writer.h"
#include "checkpoint/weight_loader.h"
#include "config/llm_arch.h"
#include "model/decoder.h"
#include "train/recompute.h"
#include "types/vector_math.h"

namespace mgm {
namespace {

LlmConfig read_config(const fs::path& path) {
  LlmConfig llm;
  read_llm_config(Json::parse(read_file(path)), path.string(), llm);
  std::vector<ConfigProblem> problems;
  check_llm(llm, problems);
  for (const ConfigProblem& p : problems) throw CheckpointError(p.key, ": ", p.message);
  return llm;
}

SeqInfo sequence(const at::Tensor& offsets, at::Device device) {
  SeqInfo seq;
  seq.offsets.assign(offsets.const_data_ptr<int64_t>(),
                     offsets.const_data_ptr<int64_t>() + offsets.numel());
  seq.cu_seqlens = offsets.to(at::kInt).to(device);
  seq.max_length = offsets.diff().max().item<int64_t>();
  return seq;
}

at::Tensor cached_logits(const Decoder& decoder, const at::Tensor& x, const ForwardContext& ctx) {
  const at::NoGradGuard no_grad;
  const int64_t length = x.size(0);
  KvCache cache = decoder.make_cache(1, length, x.options());
  std::vector<at::Tensor> out;
  // Alone, several behind others, and the rest one by one.
  for (int64_t begin = 0, n = 1; begin < length; begin += n) {
    n = begin == 1 ? std::min<int64_t>(5, length - begin) : 1;
    const at::Tensor positions = at::arange(begin, begin + n, x.options().dtype(at::kLong));
    const SeqInfo seq = sequence(at::tensor({int64_t{0}, n}), x.device());
    const at::Tensor hidden = decoder.blocks(x.narrow(0, begin, n), positions, seq, ctx, {&cache});
    out.push_back(decoder.logits(hidden, ctx));
  }
  return at::cat(out);
}

void run(const std::vector<std::string>& args) {
  const fs::path dir = args[0];
  const at::Device device(args[5]);
  const bool adapted = args.size() > 6;
  const AdapterConfig adapter = adapted ? read_adapter_config(args[6]) : AdapterConfig();
  const Decoder decoder(read_config(dir / "config.json"), adapter);
  LoadOptions load;
  load.dtype = args[4] == "bfloat16" ? at::kBFloat16 : at::kFloat;
  const std::vector<Param*> params = decoder.params();
  std::vector<OverlayLayer> layers = {{open_model_dir(dir), {}}};
  if (adapted) {
    const bool tied = decoder.config().tie_embeddings;
    for (const OverlayLayer& layer : open_adapter_layers(args[6], tied)) layers.push_back(layer);
  }
  load_weights(params, OverlaySource(layers, adapted ? "" : dir.string()), load);
  for (Param* param : params) param->value = param->value.to(device).requires_grad_();

  const SourcePtr in = open_safetensors(args[1]);
  const at::Tensor ids = in->read("ids").clone().to(device);
  const SeqInfo seq = sequence(in->read("offsets").clone(), device);
  std::vector<at::Tensor> positions, rows;
  for (int64_t s = 0; s < seq.segments(); ++s) {
    const auto i = static_cast<size_t>(s);
    positions.push_back(at::arange(seq.offsets[i + 1] - seq.offsets[i]));
    rows.push_back(at::arange(seq.offsets[i], seq.offsets[i + 1] - 1));
  }
  const at::Tensor target_rows = at::cat(rows).to(device);

  std::vector<RecomputeRule> rules(1);
  rules[0].match = "model.layers.*";
  rules[0].policy = args[3] == "full"        ? RecomputePolicy::kFull
                    : args[3] == "selective" ? RecomputePolicy::kSelective
                                             : RecomputePolicy::kNone;
  const auto runner = make_recompute_runner(rules);
  const ForwardContext ctx{*runner};
  const at::Tensor x = decoder.embed(ids, ctx);
  RouterLoad router;
  const at::Tensor hidden = decoder.blocks(x, at::cat(positions).to(device), seq, ctx, {}, &router);
  std::map<std::string, at::Tensor> out = {{"logits", decoder.logits(hidden, ctx).detach()}};
  at::Tensor loss = decoder.loss_sum(hidden.index_select(0, target_rows),
                                     ids.index_select(0, target_rows + 1), ctx);
  if (router.sums_2E.defined()) {
    loss = loss + decoder.balance_loss(router) * double(target_rows.numel());
  }
  loss.backward();
  out["loss"] = loss.detach().reshape({1});
  for (const Param* param : params) {
    MGM_CHECK(param->value.grad().defined(), param->spec.name, " has no gradient");
    out["grad." + param->spec.name] = param->value.grad();
  }
  out["cached"] = cached_logits(decoder, x.detach().narrow(0, 0, seq.offsets[1]), ctx);
  for (auto& [name, tensor] : out) tensor = tensor.to(at::kFloat).cpu().contiguous();
  write_safetensors(args[2], out);
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  if (argc != 7 && argc != 8) return 2;
  mgm::settle_vector_math();
  mgm::install_recompute_engine();
  try {
    mgm::run({argv + 1, argv + argc});
    return 0;
  } catch (const mgm::Error& e) {
    std::cerr << e.what() << "\n";
    return static_cast<int>(e.code());
  }
}
