// Weights from pageable memory (a mapped file) onto a GPU, at the rate of its bus: several threads
// copy into one page-locked buffer while the other one leaves. The driver, given such memory, does
// both with one thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <array>
#include <cstdint>
#include <optional>

namespace mgm {

class StagedUpload {
 public:
  // `host` on `device`, same shape and dtype; as it is where it lies there already. `host` has to
  // be contiguous and may go when this returns; the copy is in the order of the current stream.
  at::Tensor operator()(const at::Tensor& host, at::Device device);

 private:
  static constexpr int64_t kBytes = int64_t{32} << 20;
  struct Slot {
    at::Tensor buffer;  // page-locked
    std::optional<c10::Event> left;
  };
  std::array<Slot, 2> slots_;
  size_t next_ = 0;
};

}  // namespace mgm
