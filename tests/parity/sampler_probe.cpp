// Scores of csrc/infer/sampler for tests/parity/test_sampler_parity.py.
//   sampler_probe IN.safetensors OUT.safetensors
// IN: logits fp32 [R, V], ids int64 [R, L] of each row's sequence, cases fp64 [N, 4]: temperature,
// top_k, top_p, repetition penalty. OUT: scores.0 .. scores.N-1, fp32 [R, V].
#include <ATen/ATen.h>

#include <iostream>

#include "base/error.h"
#include "checkpoint/tensor_source.h"
#include "checkpoint/tensor_writer.h"
#include "infer/sampler.h"

namespace mgm {
namespace {

void run(const fs::path& in_path, const fs::path& out_path) {
  const SourcePtr in = open_safetensors(in_path);
  const at::Tensor logits = in->read("logits").clone(), ids = in->read("ids").clone();
  const at::Tensor cases = in->read("cases").clone();
  const at::Tensor seen = at::zeros(logits.sizes(), at::kBool).scatter_(1, ids, true);
  std::map<std::string, at::Tensor> out;
  for (int64_t i = 0; i < cases.size(0); ++i) {
    const double* numbers = cases.const_data_ptr<double>() + 4 * i;
    SamplingConfig config;
    config.temperature = numbers[0];
    config.top_k = static_cast<int64_t>(numbers[1]);
    config.top_p = numbers[2];
    config.repetition_penalty = numbers[3];
    out[cat("scores.", i)] = process_logits(logits, seen, config).clone();
  }
  write_safetensors(out_path, out);
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    mgm::run(argv[1], argv[2]);
    return 0;
  } catch (const mgm::Error& e) {
    std::cerr << e.what() << "\n";
    return static_cast<int>(e.code());
  }
}
