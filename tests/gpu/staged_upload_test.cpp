// What goes up through page-locked buffers is what was there.
#include "types/staged_upload.h"

#include <gtest/gtest.h>

#include "gpu.h"

namespace mgm {
namespace {

class StagedUploadGpu : public GpuTest {};

TEST_F(StagedUploadGpu, EveryByteArrives) {
  StagedUpload upload;
  const at::Device device(at::kCUDA);
  // Nothing, less than a buffer, exactly one, and several with a rest.
  for (const int64_t n : {0L, 1L, 5L, 1L << 24, (3L << 24) + 7}) {
    for (int round = 0; round < 3; ++round) {
      at::Tensor host = at::randint(-30000, 30000, {n}, at::kShort);
      const at::Tensor want = host.clone();
      const at::Tensor there = upload(host, device);
      host.zero_();  // the caller's memory may go at once
      ASSERT_EQ(there.sizes(), want.sizes());
      ASSERT_TRUE(at::equal(there.cpu(), want)) << n;
    }
  }
  const at::Tensor scalar = at::full({}, 2.5);
  EXPECT_TRUE(at::equal(upload(scalar, device).cpu(), scalar));
  const at::Tensor matrix = at::randn({33, 1000});
  EXPECT_TRUE(at::equal(upload(matrix, device).cpu(), matrix));
  const at::Tensor there = upload(matrix, device);
  EXPECT_TRUE(upload(there, device).is_same(there));
}

}  // namespace
}  // namespace mgm
