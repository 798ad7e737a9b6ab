// The parameter group of a block's experts where they are dealt to several ranks: named behind the
// group of the block, "model.layers.3.experts". No torch.
#pragma once

#include <string>
#include <string_view>

namespace mgm {

inline constexpr std::string_view kExpertsEnd = ".experts";

inline std::string experts_group(const std::string& block) {
  return block + std::string(kExpertsEnd);
}
inline bool is_experts_group(std::string_view group) { return group.ends_with(kExpertsEnd); }
// The block of a group: itself where it is not of dealt experts.
inline std::string block_of(const std::string& group) {
  return is_experts_group(group) ? group.substr(0, group.size() - kExpertsEnd.size()) : group;
}

}  // namespace mgm
