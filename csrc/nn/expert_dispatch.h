// The way of rows to experts that do not all lie here, and of their results back: installed by
// training where the experts of a block are dealt to several ranks (train/expert_exchange.h). Model
// code knows which experts lie here, and nothing else of ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mgm {

class ExpertDispatch {
 public:
  virtual ~ExpertDispatch() = default;

  struct Share {
    int64_t first = 0, count = 0;
  };
  // The experts of a block that lie here.
  virtual Share share() const = 0;

  // Rows that have come, by lane and within a lane by expert, and what leads them back. Each lane
  // is to be computed by itself, in order, after enter_lane: its numbers then do not depend on the
  // others. Without need of that there is one lane.
  struct Arrived {
    at::Tensor rows;                           // [R', H]
    at::Tensor extra;                          // int64 [R', k]; undefined where none was sent
    std::vector<std::vector<int64_t>> counts;  // [lane][expert of the share]: rows
    // Results [R', H] in the order of `rows` -> [R, H] in the order of the rows that were sent.
    std::function<at::Tensor(const at::Tensor& results)> send_back;
  };
  // rows [R, H] sorted by expert, `extra` int64 [R, k] beside them (or undefined), visits int64 [E]
  // of each expert. `group`: the experts' parameter group. The host waits for the visits.
  virtual Arrived send(const std::string& group, const at::Tensor& rows, const at::Tensor& extra,
                       const at::Tensor& visits_E) = 0;
  virtual void enter_lane(const std::string& group, int64_t lane) = 0;
};

}  // namespace mgm
