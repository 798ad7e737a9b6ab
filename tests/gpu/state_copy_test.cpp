// The copy that a checkpoint is written from, of state on a GPU: what is issued behind hold() is
// not in it.
#include "checkpoint/state_copy.h"

#include <ATen/ATen.h>

#include <thread>

#include "base/strings.h"
#include "base/timer.h"
#include "gpu/gpu.h"

namespace mgm {
namespace {

TEST_F(GpuTest, UpdatesBehindHoldAreNotInTheCopy) {
  constexpr int64_t kNumel = 64 << 20;
  const at::Tensor a = at::full({kNumel}, 1, at::TensorOptions(at::kCUDA).dtype(at::kFloat));
  const at::Tensor b = at::full({kNumel + 3}, 2, a.options());
  const at::Tensor c = at::full({1000}, 3, at::kFloat);  // with offload some state is on the host
  StateCopy copy({{"a", a}, {"b", b.narrow(0, 3, kNumel)}, {"c", c}});
  EXPECT_TRUE(copy.on_gpu());
  copy.allocate();
  for (int round = 0; round < 3; ++round) {
    a.fill_(1.5);  // issued before: in the copy
    b.fill_(2);
    c.fill_(3);
    const Timer timer;
    copy.start();
    std::thread writer([&] { copy.complete(); });
    copy.hold();
    const double held_s = timer.seconds();
    a.fill_(-1);
    b.fill_(-1);
    c.fill_(-1);
    writer.join();
    std::printf("%s: the host was held %.6f s, the device %.4f s; copied in %.4f s\n",
                human_bytes(static_cast<double>(copy.bytes())).c_str(), held_s,
                copy.device_wait_s(), timer.seconds());
    EXPECT_GE(copy.device_wait_s(), 0);
    const double expected[] = {1.5, 2, 3};
    for (size_t i = 0; i < std::size(expected); ++i) {
      const ShardTensor& copied = copy.copies()[i];
      EXPECT_EQ(copied.values.min().item<double>(), expected[i]) << copied.name;
      EXPECT_EQ(copied.values.max().item<double>(), expected[i]) << copied.name;
    }
  }
}

}  // namespace
}  // namespace mgm
