// Encoding speed on one thread, for tests/bench/tokenizer_bench.py.
//   tokenizer_bench TOKENIZER TEXT PASSES
// Encodes the lines of TEXT PASSES times and prints one JSON object: the CPU seconds of the best
// pass, so that other work on the machine does not count, and the number of tokens.
#include <time.h>

#include <algorithm>
#include <iostream>

#include "base/fs.h"
#include "base/strings.h"
#include "text/tokenizer.h"

namespace mgm {
namespace {

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

void run(const std::string& path, const std::string& text_path, int passes) {
  const auto tokenizer = load_tokenizer(path);
  const std::vector<std::string> lines = split(read_file(text_path), '\n');
  double best = 1e30;
  int64_t tokens = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const double start = cpu_seconds();
    tokens = 0;
    for (const std::string& line : lines) tokens += int64_t(tokenizer->encode_spans(line).size());
    best = std::min(best, cpu_seconds() - start);
  }
  std::cout << strf("{\"cpu_s\": %.6f, \"tokens\": %lld}\n", best, static_cast<long long>(tokens));
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "tokenizer_bench TOKENIZER TEXT PASSES\n";
    return 2;
  }
  try {
    mgm::run(argv[1], argv[2], std::stoi(argv[3]));
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
}
