// Decode steps that are recorded and replayed: a replay hands all work of a step to the device in
// one call, where the host would otherwise launch hundreds of kernels. Recorded are CUDA graphs;
// the interface is there so that what is done when can be tested without a GPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "model/decoder.h"

namespace mgm {

// A step: reads and writes tensors that stay where they are, returns logits.
using StepBody = std::function<at::Tensor()>;

class RecordedStep {
 public:
  virtual ~RecordedStep() = default;
  // Does what was recorded. The result is the same tensor every time.
  virtual at::Tensor replay() = 0;
};

class StepRecorder {
 public:
  virtual ~StepRecorder() = default;
  // Takes down what `step` does on the device, without doing it; what it does on the host is done,
  // perhaps twice. All that one recorder records shares memory: a result is good until the next
  // step. Throws InternalError for what cannot be recorded; nothing of it was done on the device.
  virtual std::unique_ptr<RecordedStep> record(const StepBody& step) = 0;

  // Nothing is recorded any more, nor replayed.
  void give_up() { given_up_ = true; }
  bool given_up() const { return given_up_; }

 private:
  bool given_up_ = false;
};

// Records CUDA graphs on one GPU; null in a build without CUDA and for other devices. Its record()
// throws for a step during which the host waits for the GPU, and where memory is short.
std::unique_ptr<StepRecorder> make_graph_recorder(at::Device device);

// Why the steps of a decoder with weights of this type cannot be recorded, as the end of a
// sentence; empty if they can.
std::string unrecordable(const Decoder& decoder, at::ScalarType dtype);

// The steps of one cache: recorded per number of rows, the second time it comes (the first time
// warms up, and a number that comes once is not worth it). Keeps the kMost used last.
class StepGraphs {
 public:
  static constexpr size_t kMost = 32;

  // `recorder` null: every step simply runs. It must outlive this.
  explicit StepGraphs(StepRecorder* recorder) : recorder_(recorder) {}

  // The result of `step`, which is one of `rows` rows; it is good until the next step. If it cannot
  // be recorded, a warning says why and this and all later steps run.
  at::Tensor run(int64_t rows, const StepBody& step);

  int64_t recorded() const { return recorded_; }  // graphs
  int64_t replayed() const { return replayed_; }  // steps

 private:
  struct Kept {
    std::unique_ptr<RecordedStep> step;
    int64_t last_use = 0;
  };
  void drop_oldest();

  StepRecorder* recorder_;
  std::set<int64_t> seen_;
  std::map<int64_t, Kept> kept_;  // by number of rows
  int64_t recorded_ = 0, replayed_ = 0;
};

}  // namespace mgm
