// Packs a matrix and brings it back, for tests/parity/test_quantize_parity.py.
//   quantize_probe IN.safetensors OUT.safetensors nf4|int8
// IN: weight [out, in] float32 or bfloat16. OUT: codes, scales and with nf4 maxima, offset and
// map (what the codes of maxima mean), as ops/packed_weight.h has them; float32 and bfloat16, the
// dequantised matrix.
#include <ATen/ATen.h>

#include <iostream>

#include "base/error.h"
#include "checkpoint/tensor_source.h"
#include "checkpoint/tensor_writer.h"
#include "kernels/quantize.h"
#include "ops/packed_weight.h"

namespace mgm {
namespace {

// safetensors of ours hold floats; bytes are exact in them.
at::Tensor number(const at::Tensor& t) { return t.to(at::kFloat).contiguous(); }

void run(const std::vector<std::string>& args) {
  const at::Tensor weight = open_safetensors(args[0])->read("weight").clone();
  const bool nf4 = args[2] == "nf4";
  const PackedWeight packed =
      ops::pack_weight(weight, nf4 ? WeightFormat::kNf4 : WeightFormat::kInt8);
  std::map<std::string, at::Tensor> out = {{"codes", number(packed.codes)},
                                           {"scales", packed.scales},
                                           {"float32", ops::unpack_weight(packed, at::kFloat)},
                                           {"bfloat16", ops::unpack_weight(packed, at::kBFloat16)}};
  if (nf4) {
    out["maxima"] = number(packed.maxima);
    out["offset"] = at::full({1}, packed.offset, at::kFloat);
    const std::vector<float> map(std::begin(kernels::kMaximaValues.v),
                                 std::end(kernels::kMaximaValues.v));
    out["map"] = at::tensor(map);
  }
  write_safetensors(args[1], out);
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    mgm::run({argv + 1, argv + argc});
    return 0;
  } catch (const mgm::Error& e) {
    std::cerr << e.what() << "\n";
    return static_cast<int>(e.code());
  }
}
