#include "dist/group_sizes.h"

#include <map>

namespace mgm {

std::vector<GroupSize> group_sizes(const std::vector<Param*>& params,
                                   const std::vector<ParamPolicy>& policies) {
  std::vector<GroupSize> out;
  std::map<std::string, size_t> places;
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i]->spec;
    if (spec.format != WeightFormat::kDense) continue;
    const auto [it, fresh] = places.try_emplace(spec.group, out.size());
    if (fresh) out.push_back({spec.group, 0, 0});
    GroupSize& group = out[it->second];
    (policies[i].train ? group.trained : group.frozen) += aligned(spec.numel());
  }
  return out;
}

std::vector<PassProgram::Group> program_groups(const std::vector<GroupSize>& sizes) {
  std::vector<PassProgram::Group> out;
  for (const GroupSize& size : sizes) out.push_back({size.name, size.trained > 0});
  return out;
}

}  // namespace mgm
