// The one interface through which model code calls its parameter groups (decoder block, tower part,
// embedding, mining, head). The default runs the body in place; training installs runners that drop
// activations and run the body again in backward (train/recompute.h) or bring parameters in and
// send gradients out (sharding). Model code knows neither.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace mgm {

using Tensors = std::vector<at::Tensor>;
using BlockBody = std::function<Tensors(const Tensors&)>;

class BlockRunner {
 public:
  virtual ~BlockRunner() = default;
  // Returns body(inputs) with the parameters of `group` present. The body must be a pure function
  // of its inputs, the group's parameters and values captured by copy: it may run a second time
  // during backward.
  virtual Tensors run(const std::string& group, const Tensors& inputs, const BlockBody& body) = 0;
};

// Runs in place.
class DirectRunner : public BlockRunner {
 public:
  Tensors run(const std::string&, const Tensors& inputs, const BlockBody& body) override {
    return body(inputs);
  }
};

class ExpertDispatch;  // nn/expert_dispatch.h

// What a forward pass is told besides its data.
struct ForwardContext {
  BlockRunner& runner;
  bool training = false;  // drop path and adapters' dropout are active
  uint64_t seed = 0;      // with `step`, keys the randomness of both
  int64_t step = 0;
  bool zero_hr = false;    // ablation of a trained model: the HR maps are zeros
  bool drop_path = false;  // drop path is active out of training too, as in the reference
  std::map<std::string, at::Tensor>* trace = nullptr;  // collects intermediates by name if set
  ExpertDispatch* experts = nullptr;                   // where a model was made with experts apart

  void record(const char* name, const at::Tensor& value) const {
    if (trace) (*trace)[name] = value.detach();
  }
};

}  // namespace mgm
