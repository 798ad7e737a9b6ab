// A folder of its own per test, and tensors with values that tell mistakes.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/fs.h"

namespace mgm {

class FilesTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) /
              (std::string("mgm_") + info->test_suite_name() + "_" + info->name());
    fs::remove_all(folder_);
    make_dirs(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_;
};

// Different in every element and for every seed, exact in every float type.
inline at::Tensor numbered(std::vector<int64_t> shape, int64_t seed, at::ScalarType type) {
  const at::Tensor flat = at::arange(at::empty(shape).numel(), at::kLong);
  return flat.mul(7).add(seed).remainder(251).reshape(shape).to(type);
}

inline void expect_same(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.scalar_type(), b.scalar_type());
  EXPECT_EQ(a.sizes(), b.sizes());
  EXPECT_TRUE(a.sizes() == b.sizes() && at::equal(a.to(at::kDouble), b.to(at::kDouble)));
}

}  // namespace mgm
