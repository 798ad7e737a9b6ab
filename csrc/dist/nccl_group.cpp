#include "base/error.h"
#include "dist/c10d_group.h"

#ifdef MGM_WITH_CUDA
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "dist/c10d_backend.h"
#endif

namespace mgm {

#ifdef MGM_WITH_CUDA

std::unique_ptr<ProcessGroup> make_nccl_group(const std::shared_ptr<Store>& store,
                                              const GroupSettings& settings, int device) {
  const GroupPlace& place = settings.place;
  try {
    auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
    options->timeout = std::chrono::milliseconds(static_cast<int64_t>(settings.timeout_s * 1000));
    options->group_name = place.name;
    options->group_desc = place.name;
    for (int i = 0; i < place.size; ++i) {  // as c10d's own record of collectives names them
      options->global_ranks_in_group.push_back(uint64_t(place.first + i * place.stride));
    }
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("nccl/" + place.name, store->impl());
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(prefixed), place.rank,
                                                               place.size, std::move(options));
    const at::Device at_device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    backend->setBoundDeviceId(at_device);
    backend->eagerConnectSingleDevice(at_device);
    return std::make_unique<C10dGroup>(settings, store, std::move(backend));
  } catch (const c10::Error& e) {
    throw DistError("rank ", place.first + place.rank * place.stride, ": cannot join NCCL group '",
                    place.name, "' of ", members(place), " on cuda:", device, ": ",
                    e.what_without_backtrace());
  }
}

Json nccl_trace() {
  return Json::parse(c10d::dump_nccl_trace_json(/*includeCollectives=*/true, /*onlyActive=*/false),
                     nullptr, /*allow_exceptions=*/false);
}

#else

Json nccl_trace() { return nullptr; }

std::unique_ptr<ProcessGroup> make_nccl_group(const std::shared_ptr<Store>&, const GroupSettings&,
                                              int) {
  throw ConfigError("dist.backend: nccl needs a build with CUDA (scripts/setup.sh --cuda)");
}

#endif

}  // namespace mgm
