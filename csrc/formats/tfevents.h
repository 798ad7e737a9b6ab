// TensorBoard event files with scalars: TFRecord framing (length, masked CRC-32C, payload, masked
// CRC-32C) around Event messages of tensorflow/core/util/event.proto, encoded by hand.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/fs.h"

namespace mgm {

// The framed bytes of one event; `wall_time` in seconds since 1970. Values are stored as float32,
// the only scalar type TensorBoard has.
std::string tfevents_scalars(double wall_time, int64_t step,
                             const std::vector<std::pair<std::string, double>>& scalars);

// Appends events to a file of its own in `folder`: events.out.tfevents.<time>.<host>.<pid>.<n>.
class TfEventsWriter {
 public:
  // A run that goes on from a checkpoint passes the first step it will write: TensorBoard then
  // drops what earlier files of the folder hold from that step on. Throws Error(kInternal).
  TfEventsWriter(const fs::path& folder, int64_t first_step, double wall_time);
  void add(double wall_time, int64_t step,
           const std::vector<std::pair<std::string, double>>& scalars);
  void finish() { writer_.finish(); }  // fsync and close
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  FileWriter writer_;
};

}  // namespace mgm
