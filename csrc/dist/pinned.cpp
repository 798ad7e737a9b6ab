#include "dist/pinned.h"

#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#ifdef MGM_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace mgm {

at::Tensor pinned_tensor(int64_t numel, at::ScalarType dtype) {
  const auto bytes = static_cast<size_t>(numel) * c10::elementSize(dtype);
  if (bytes == 0) return at::empty({0}, dtype);
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw InternalError("cannot allocate ", human_bytes(double(bytes)),
                        " of host memory: ", std::strerror(errno));
  }
#ifdef MGM_WITH_CUDA
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
