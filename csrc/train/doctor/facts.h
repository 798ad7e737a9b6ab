// What a rank is told by its host and GPU: read by one function each, so that checks can be given
// anything. Bytes; times in seconds.
#pragma once

#include <cstdint>
#include <string>

#include "base/fs.h"

namespace mgm {

struct HostFacts {
  std::string name;              // host name
  std::string boot;              // differs from host to host also where names are the same
  std::string network;           // its network namespace: containers of one machine are hosts too
  std::string gpu_driver;        // version of the kernel's NVIDIA driver; empty: there is none
  int64_t memory_total = 0;      // of the machine
  int64_t memory_available = 0;  // of the machine
  int64_t memory_free = 0;       // to this process: cgroups may allow less (base/host_memory.h)
  int64_t cores = 1;             // that this process may run on, and its quota
  int64_t open_files = 0;        // ulimit -n; < 0: unlimited
  int64_t locked_memory = -1;    // ulimit -l; < 0: unlimited

  std::string id() const { return name + "/" + boot + "/" + network; }
};
// `root`: where proc and sys are looked for.
HostFacts read_host_facts(const fs::path& root = "/");

struct GpuFacts {
  bool built = false;  // with CUDA
  int visible = 0;
  int ordinal = -1;  // the one of this rank; < 0: runs on the CPU
  std::string name, uuid, pci;
  int major = 0, minor = 0;               // compute capability
  int driver = 0, runtime = 0, nccl = 0;  // 13000 is CUDA 13.0; 22809 is NCCL 2.28.9
  int64_t memory_free = 0, memory_total = 0;
};
// Of CUDA device `ordinal`; < 0: the build and the number of GPUs alone.
GpuFacts read_gpu_facts(int ordinal);

}  // namespace mgm
