#include "train/doctor/facts.h"

#ifdef MGM_WITH_CUDA
#include <cuda_runtime_api.h>
#include <torch/csrc/cuda/nccl.h>

#include "base/error.h"
#endif

namespace mgm {

#ifdef MGM_WITH_CUDA
namespace {

std::string uuid_text(const cudaUUID_t& uuid) {
  std::string out = "GPU-";
  for (const char byte : uuid.bytes) out += strf("%02x", static_cast<unsigned char>(byte));
  return out;
}

void require(cudaError_t code, const char* what) {
  if (code != cudaSuccess) {
    throw InternalError(what, ": ", cudaGetErrorString(code),
                        "; does nvidia-smi show a healthy GPU and driver?");
  }
}

}  // namespace

GpuFacts read_gpu_facts(int ordinal) {
  GpuFacts out;
  out.built = true;
  out.ordinal = ordinal;
  if (cudaGetDeviceCount(&out.visible) != cudaSuccess) out.visible = 0;
  if (ordinal < 0) return out;
  require(cudaDriverGetVersion(&out.driver), "the version of the CUDA driver");
  require(cudaRuntimeGetVersion(&out.runtime), "the version of the CUDA runtime");
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, ordinal), "properties of the GPU");
  out.name = properties.name;
  out.uuid = uuid_text(properties.uuid);
  out.pci = strf("%04x:%02x:%02x", static_cast<unsigned>(properties.pciDomainID),
                 static_cast<unsigned>(properties.pciBusID),
                 static_cast<unsigned>(properties.pciDeviceID));
  out.major = properties.major;
  out.minor = properties.minor;
  size_t unused = 0, total = 0;
  require(cudaSetDevice(ordinal), "taking the GPU");
  require(cudaMemGetInfo(&unused, &total), "free memory of the GPU");
  out.memory_free = static_cast<int64_t>(unused);
  out.memory_total = static_cast<int64_t>(total);
  const std::uint64_t nccl = torch::cuda::nccl::version();  // 16 bits of patch, 16 of minor
  out.nccl =
      static_cast<int>((nccl >> 32) * 10000 + ((nccl >> 16) & 0xffff) * 100 + (nccl & 0xffff));
  return out;
}

#else

GpuFacts read_gpu_facts(int) { return {}; }

#endif

}  // namespace mgm
