#include "train/hooks/tensorboard.h"

#include <chrono>

namespace mgm {
namespace {

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

TensorBoard::TensorBoard(const fs::path& folder, int64_t first_step)
    : writer_(folder, first_step, wall_time()) {}

void TensorBoard::on_step(const StepReport& r) {
  const double seconds = r.step_s > 0 ? r.step_s : 1;
  std::vector<std::pair<std::string, double>> values = {
      {"train/lr", r.lr},
      {"train/grad_norm", r.grad_norm},
      {"train/num_targets", double(r.num_targets)},
      {"speed/tokens_per_s", double(r.tokens) / seconds},
      {"speed/images_per_s", double(r.images) / seconds},
      {"speed/step_s", r.step_s},
      {"speed/data_wait_share", r.data_wait_s / seconds},
      {"memory/peak_bytes", double(r.memory_bytes)}};
  if (r.num_targets > 0) values.insert(values.begin(), {"train/loss", r.loss});
  writer_.add(wall_time(), r.step, values);
}

void TensorBoard::on_end() { writer_.finish(); }

}  // namespace mgm
