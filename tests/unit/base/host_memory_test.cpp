#include "base/host_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace mgm {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

class HostMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("mgm_host_memory_" + std::to_string(::getpid()));
    fs::remove_all(root_);
    put("proc/meminfo", "MemTotal: 999 kB\nMemFree: 1 kB\nMemAvailable:   67108864 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }
  void put(const fs::path& file, const std::string& text) {
    make_dirs((root_ / file).parent_path());
    write_file_atomic(root_ / file, text);
  }
  fs::path root_;
};

TEST_F(HostMemoryTest, OfTheMachine) {
  EXPECT_EQ(available_host_memory(root_), 64 * kGiB);
  put("proc/self/cgroup", "0::/\n");
  put("sys/fs/cgroup/memory.max", "max\n");
  put("sys/fs/cgroup/memory.current", "1234\n");
  EXPECT_EQ(available_host_memory(root_), 64 * kGiB);
  EXPECT_GT(available_host_memory(), uint64_t{1} << 20);  // of this machine
}

TEST_F(HostMemoryTest, OfAGroupAndTheGroupsAboveIt) {
  put("proc/self/cgroup", "0::/job/step\n");
  put("sys/fs/cgroup/job/step/memory.max", std::to_string(40 * kGiB));
  put("sys/fs/cgroup/job/step/memory.current", std::to_string(10 * kGiB));
  put("sys/fs/cgroup/job/step/memory.stat", "anon 1\ninactive_file 2147483648\nother 5\n");
  EXPECT_EQ(available_host_memory(root_), 32 * kGiB);  // 2 GiB of the 10 are droppable cache
  put("sys/fs/cgroup/job/memory.max", std::to_string(20 * kGiB));
  put("sys/fs/cgroup/job/memory.current", std::to_string(15 * kGiB));
  EXPECT_EQ(available_host_memory(root_), 5 * kGiB);
  put("sys/fs/cgroup/job/memory.current", std::to_string(21 * kGiB));
  EXPECT_EQ(available_host_memory(root_), 0u);
}

// A container sees its own group at the top, whatever /proc calls it.
TEST_F(HostMemoryTest, VersionOneInAContainer) {
  put("proc/self/cgroup", "11:cpu:/docker/abc\n7:memory:/docker/abc\n1:name=systemd:/docker/abc\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", std::to_string(8 * kGiB));
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(3 * kGiB));
  put("sys/fs/cgroup/memory/memory.stat", "cache 5\ntotal_inactive_file 1073741824\n");
  EXPECT_EQ(available_host_memory(root_), 6 * kGiB);
}

}  // namespace
}  // namespace mgm
