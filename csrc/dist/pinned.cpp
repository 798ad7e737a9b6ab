#include "dist/pinned.h"

#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "base/error.h"
#ifdef MGM_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace mgm {
#ifdef MGM_WITH_CUDA
namespace {

// The system hands pages out at the first touch; several threads get them several times as fast as
// the one that locks them would.
void touch(char* data, size_t bytes) {
  constexpr size_t kPage = 4096, kWorthAThread = size_t{1} << 28;
  const size_t threads = std::clamp<size_t>(
      std::min<size_t>(bytes / kWorthAThread, std::thread::hardware_concurrency() / 2), 1, 8);
  std::vector<std::thread> workers;
  for (size_t t = 0; t < threads; ++t) {
    workers.emplace_back([=] {
      for (size_t at = bytes / threads * t; at < bytes / threads * (t + 1); at += kPage)
        data[at] = 0;
    });
  }
  for (std::thread& worker : workers) worker.join();
}

}  // namespace
#endif

at::Tensor pinned_tensor(int64_t numel, at::ScalarType dtype) {
  const auto bytes = static_cast<size_t>(numel) * c10::elementSize(dtype);
  if (bytes == 0) return at::empty({0}, dtype);
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw InternalError("cannot allocate ", human_bytes(double(bytes)),
                        " of host memory: ", std::strerror(errno));
  }
  ::madvise(data, bytes, MADV_HUGEPAGE);
#ifdef MGM_WITH_CUDA
  touch(static_cast<char*>(data), bytes);
  const cudaError_t code = cudaHostRegister(data, bytes, cudaHostRegisterDefault);
  if (code != cudaSuccess) {
    ::munmap(data, bytes);
    throw InternalError("cannot lock ", human_bytes(double(bytes)),
                        " of host memory for transfers: ", cudaGetErrorString(code),
                        "; see ulimit -l and the memory limit of the job");
  }
#endif
  return at::from_blob(
      data, {numel},
      [bytes](void* p) {
#ifdef MGM_WITH_CUDA
        cudaHostUnregister(p);
#endif
        ::munmap(p, bytes);
      },
      at::TensorOptions(dtype));
}

}  // namespace mgm
