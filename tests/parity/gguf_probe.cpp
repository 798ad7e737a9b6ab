// Drives csrc/formats/gguf.h for tests/parity/test_gguf_parity.py.
//   gguf_probe FILE OUT    OUT: every tensor that can be unpacked, as fp32, one behind another
// stdout: a line per tensor, "name type shape...", "-" before one that cannot be unpacked; then
// "key = value" of scalars and "key = [kind of count]" of arrays. Refused: the message and exit
// code 4.
#include <iomanip>
#include <iostream>

#include "base/error.h"
#include "base/fs.h"
#include "formats/gguf.h"

namespace mgm {
namespace {

void print(const std::string& key, const GgufValue& value) {
  std::cout << key << " = ";
  if (const auto text = value.string()) {
    std::cout << *text;
  } else if (const auto truth = value.boolean()) {
    std::cout << (*truth ? "True" : "False");
  } else if (const auto elements = value.elements()) {
    std::cout << "[" << static_cast<int>(value.element) << " of " << elements->size() << "]";
  } else {
    std::cout << std::setprecision(17) << value.number().value_or(0);
  }
  std::cout << "\n";
}

void dump(const fs::path& in, const fs::path& out) {
  const MappedFile mapped(in);
  const GgufFile file =
      parse_gguf({reinterpret_cast<const char*>(mapped.data()), mapped.size()}, in);
  FileWriter writer(out);
  for (const GgufTensor& t : file.tensors) {
    const bool readable = can_dequantise(t.type);
    std::cout << (readable ? "" : "- ") << t.name << " " << t.type.name;
    for (const int64_t size : t.shape) std::cout << " " << size;
    std::cout << "\n";
    if (!readable) continue;
    std::vector<float> values((t.end - t.begin) / t.type.bytes * t.type.block);
    dequantise(t.type, mapped.data() + t.begin, values.size(), values.data());
    writer.write(values.data(), values.size() * sizeof(float));
  }
  writer.finish();
  for (const auto& [key, value] : file.metadata) print(key, value);
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    mgm::dump(argv[1], argv[2]);
    return 0;
  } catch (const mgm::Error& e) {
    std::cerr << e.what() << "\n";
    return static_cast<int>(e.code());
  }
}
