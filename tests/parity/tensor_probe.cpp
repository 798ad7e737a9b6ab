// Drives csrc/checkpoint for tests/parity/test_formats_parity.py.
//   tensor_probe FILE|INDEX.json|DIR OUT.safetensors|OUT.bin     reads every tensor and writes it
//   again
// stdout: the names of values that are no tensors, one a line. Refused: the message and exit
// code 4.
#include <iostream>

#include "base/error.h"
#include "checkpoint/tensor_source.h"
#include "checkpoint/tensor_writer.h"

namespace mgm {
namespace {

SourcePtr open(const fs::path& path) {
  if (fs::is_directory(path)) return open_model_dir(path);
  return path.extension() == ".json" ? open_sharded(path) : open_tensor_file(path);
}

void copy(const fs::path& in, const fs::path& out) {
  const SourcePtr source = open(in);
  for (const std::string& name : source->not_tensors()) std::cout << name << "\n";
  std::vector<TensorSpec> specs;
  for (const std::string& name : source->names()) {
    specs.push_back({name, source->info(name).type, source->info(name).shape});
  }
  const TensorGetter get = [&](const std::string& name) { return source->read(name); };
  if (out.extension() == ".safetensors") {
    write_safetensors(out, specs, get);
  } else {
    write_torch_file(out, specs, get);
  }
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    mgm::copy(argv[1], argv[2]);
    return 0;
  } catch (const mgm::Error& e) {
    std::cerr << e.what() << "\n";
    return static_cast<int>(e.code());
  }
}
