#include "dist/frozen_hash.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "types/expert_group.h"

namespace mgm {
namespace {

// Elements [first, ...) of a parameter; parts begin at multiples of a chunk.
uint64_t hash_elements(const std::string& name, int64_t first, const at::Tensor& values) {
  MGM_CHECK(first % kFlatAlign == 0, name, ": a part begins at element ", first);
  const at::Tensor host = values.detach().to(at::kCPU).contiguous();
  const char* bytes = static_cast<const char*>(host.const_data_ptr());
  const auto size = static_cast<size_t>(host.element_size());
  const uint64_t key = hash64(name);
  uint64_t sum = 0;
  for (int64_t at = 0; at < host.numel(); at += kFlatAlign) {
    const int64_t count = std::min(kFlatAlign, host.numel() - at);
    sum += hash64({bytes + static_cast<size_t>(at) * size, static_cast<size_t>(count) * size},
                  key + static_cast<uint64_t>((first + at) / kFlatAlign));
  }
  return sum;
}

}  // namespace

std::map<std::string, std::string> frozen_hashes(const ParamStore& store, Ranks& ranks,
                                                 const FrozenHasher& packed) {
  std::map<std::string, int64_t> sums;  // the same names on every rank
  for (const ParamGroup& group : store.groups()) {
    const std::string name = block_of(group.name);  // of dealt experts as if they were not
    const uint64_t of_packed = group.experts ? 0 : packed.sum(name);
    if (group.frozen.empty() && of_packed == 0) continue;
    uint64_t sum = ranks.is_first() ? of_packed : 0;
    for (const Segment& s : group.frozen.segments) {
      if (group.topology.replica_rank() > 0) break;  // replicas hold the same
      const ParamStore::Range mine = store.owned(s.param->spec.name);
      if (mine.count == 0) continue;
      const int64_t at = s.offset + mine.first - group.frozen.begin;
      sum += hash_elements(s.param->spec.name, mine.first,
                           group.frozen.shard.narrow(0, at, mine.count));
    }
    int64_t& total = sums[name];
    total = static_cast<int64_t>(static_cast<uint64_t>(total) + sum);
  }
  std::vector<int64_t> mine;
  for (const auto& [name, sum] : sums) mine.push_back(sum);
  const at::Tensor total = at::tensor(mine, at::kLong);
  if (!mine.empty()) ranks.control->all_reduce_sum(total, "hashes of frozen weights").wait();
  std::map<std::string, std::string> out;
  const int64_t* next = total.const_data_ptr<int64_t>();
  for (const auto& [name, sum] : sums) out[name] = hex64(static_cast<uint64_t>(*next++));
  return out;
}

void FrozenHasher::add(const ParamSpec& spec, int64_t first, const at::Tensor& values) {
  sums_[block_of(spec.group)] += hash_elements(spec.name, first, values.reshape(-1));
}

uint64_t FrozenHasher::sum(const std::string& group) const {
  const auto it = sums_.find(group);
  return it == sums_.end() ? 0 : it->second;
}

std::map<std::string, std::string> FrozenHasher::hashes() const {
  std::map<std::string, std::string> out;
  for (const auto& [group, sum] : sums_) out[group] = hex64(sum);
  return out;
}

}  // namespace mgm
