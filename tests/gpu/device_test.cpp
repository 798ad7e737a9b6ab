#include "train/device.h"

#include "gpu/gpu.h"

namespace mgm {
namespace {

class DeviceGpu : public GpuTest {};

// A file of several stages is one process; the peak of one is not that of the next.
TEST_F(DeviceGpu, PeakMemoryCountsFromTheSetup) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  TrainConfig config;
  config.device = DeviceKind::kCuda;
  const DeviceSetup setup = setup_device(config);
  at::empty({kBytes}, at::TensorOptions(setup.device).dtype(at::kByte)).reset();
  EXPECT_GE(peak_memory_bytes(setup.device), kBytes);
  setup_device(config);
  EXPECT_LT(peak_memory_bytes(setup.device), kBytes);
}

}  // namespace
}  // namespace mgm
