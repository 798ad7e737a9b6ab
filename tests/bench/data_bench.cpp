// Times of the data room, for tests/bench/data_bench.py:
//   data_bench index ANNOTATIONS THREADS                      seconds, records
//   data_bench load ANNOTATIONS IMAGES TOKENIZER SIDE WORKERS  seconds, pictures (one epoch, SIDE x
//   SIDE
//                                                              canvases)
#include <cstdlib>
#include <iostream>

#include "base/error.h"
#include "base/timer.h"
#include "data/loader.h"
#include "text/tokenizer.h"

namespace mgm {
namespace {

void time_index(const std::string& file, int threads) {
  const Timer timer;
  const AnnotationIndex index({{file, "", {}}}, threads);
  std::cout << timer.seconds() << " " << index.size() << "\n";
}

void time_loader(char** argv) {
  RunConfig config;
  config.data.sources = {{argv[0], argv[1], {}}};
  config.image.hr_size = std::atoi(argv[3]);
  config.data.workers = std::atoi(argv[4]);
  const auto tokenizer = load_tokenizer(argv[2]);
  config.model.llm.vocab_size = tokenizer->vocab_size();
  const AnnotationIndex index(config.data.sources, 1);
  const SampleBuilder builder(config, index, *tokenizer);
  constexpr int64_t kBatch = 8;
  const Plan plan(sample_lengths(index, builder.geometry().tokens()), config.data, kBatch, 1);
  Loader loader(plan, builder, config.data, {kBatch, 0, 1, 0, plan.steps_per_epoch()});
  const Timer timer;
  int64_t pictures = 0;
  while (const auto step = loader.next()) pictures += step->micro[0].num_images();
  std::cout << timer.seconds() << " " << pictures << "\n";
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  try {
    if (command == "index" && argc == 4) {
      mgm::time_index(argv[2], std::atoi(argv[3]));
    } else if (command == "load" && argc == 7) {
      mgm::time_loader(argv + 2);
    } else {
      std::cerr << "data_bench index ANNOTATIONS THREADS | "
                   "load ANNOTATIONS IMAGES TOKENIZER SIDE WORKERS\n";
      return 2;
    }
  } catch (const mgm::Error& e) {
    std::cerr << e.what() << "\n";
    return static_cast<int>(e.code());
  }
  return 0;
}
