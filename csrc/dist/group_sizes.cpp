#include "dist/group_sizes.h"

#include <algorithm>
#include <map>

namespace mgm {

int64_t experts_of(const std::vector<Param*>& params) {
  int64_t last = -1;
  for (const Param* param : params) last = std::max(last, param->spec.expert);
  return last + 1;
}

bool holds_expert(const ParamSpec& spec, int64_t experts, int ranks, int expert_rank) {
  return spec.expert < 0 || spec.expert / (experts / ranks) == expert_rank;
}

std::vector<GroupSize> group_sizes(const std::vector<Param*>& params,
                                   const std::vector<ParamPolicy>& policies, int expert_ranks) {
  std::vector<GroupSize> out;
  std::map<std::string, size_t> places;
  const int64_t experts = experts_of(params);
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i]->spec;
    if (spec.format != WeightFormat::kDense) continue;
    const bool dealt = spec.expert >= 0 && expert_ranks > 1;
    if (dealt && !holds_expert(spec, experts, expert_ranks, /*expert_rank=*/0)) continue;
    const auto [it, fresh] = places.try_emplace(spec.group, out.size());
    if (fresh) out.push_back({spec.group, 0, 0, dealt});
    GroupSize& group = out[it->second];
    (policies[i].train ? group.trained : group.frozen) += aligned(spec.numel());
  }
  return out;
}

std::vector<PassProgram::Group> program_groups(const std::vector<GroupSize>& sizes) {
  std::vector<PassProgram::Group> out;
  for (const GroupSize& size : sizes) out.push_back({size.name, size.trained > 0, size.experts});
  return out;
}

}  // namespace mgm
