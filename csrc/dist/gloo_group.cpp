#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "base/error.h"
#include "dist/c10d_backend.h"

namespace mgm {

std::unique_ptr<ProcessGroup> make_gloo_group(const std::shared_ptr<Store>& store,
                                              const GroupSettings& settings,
                                              const std::string& address) {
  const auto timeout = std::chrono::milliseconds(static_cast<int64_t>(settings.timeout_s * 1000));
  const GroupPlace& place = settings.place;
  const std::string what =
      cat("rank ", place.first + place.rank * place.stride, ": cannot join Gloo group '",
          place.name, "' of ", members(place), " from ", address, ": ");
  try {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    options->group_name = place.name;
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("gloo/" + place.name, store->impl());
    return std::make_unique<C10dGroup>(
        settings, store,
        c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(prefixed), place.rank, place.size,
                                                    std::move(options)));
  } catch (const c10::Error& e) {
    throw DistError(what, e.what_without_backtrace());
  } catch (const std::exception& e) {
    throw DistError(what, e.what());
  }
}

}  // namespace mgm
