// GPU tests skip loudly where there is no GPU; with MGM_TEST_REQUIRE=gpu in the environment that is
// a failure.
#pragma once

#include <ATen/Context.h>
#include <c10/core/AutogradState.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "train/recompute.h"

namespace mgm {

inline bool gpu_required() {
  const char* required = std::getenv("MGM_TEST_REQUIRE");
  return required && std::string_view(required).find("gpu") != std::string_view::npos;
}

class GpuTest : public testing::Test {
 protected:
  // As in a run: our autograd engine before the first backward of the process (its device threads
  // start once), and backward on the calling thread.
  static void SetUpTestSuite() { install_recompute_engine(); }
  void SetUp() override {
    c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);  // deterministic products need it
    if (at::globalContext().hasCUDA()) {
      // float32 here means float32.
      at::globalContext().setAllowTF32CuBLAS(false);
      at::globalContext().setAllowTF32CuDNN(false);
      return;
    }
    if (gpu_required()) FAIL() << "MGM_TEST_REQUIRE=gpu, but no GPU can be used";
    GTEST_SKIP() << "NO GPU: this test has shown nothing";
  }
};

// Deterministic algorithms while the object lives.
class Deterministic {
 public:
  Deterministic() { at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false); }
  ~Deterministic() { at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/false); }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;
};

}  // namespace mgm
