// While it lives, torch throws in any thread where the host would wait for a GPU.
#pragma once

#include <c10/cuda/CUDAFunctions.h>

namespace mgm {

class NoWaits {
 public:
  NoWaits() { set(c10::cuda::SyncDebugMode::L_ERROR); }
  ~NoWaits() { set(c10::cuda::SyncDebugMode::L_DISABLED); }
  NoWaits(const NoWaits&) = delete;
  NoWaits& operator=(const NoWaits&) = delete;

 private:
  static void set(c10::cuda::SyncDebugMode mode) {
    c10::cuda::warning_state().set_sync_debug_mode(mode);
  }
};

}  // namespace mgm
