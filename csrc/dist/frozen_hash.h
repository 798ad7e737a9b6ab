// Hashes of frozen weights, one per group (experts with their block, wherever they lie): what a
// checkpoint keeps instead of the weights. A sum of hashes of fixed chunks, so that it does not
// matter how many ranks hold them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dist/param_store.h"
#include "dist/ranks.h"

namespace mgm {

// The same text from parameters that come in pieces, for who holds no store.
class FrozenHasher {
 public:
  // Elements [first, first + values.numel()) of a frozen parameter, in the dtype it is used in.
  // Pieces begin at multiples of kFlatAlign.
  void add(const ParamSpec& spec, int64_t first, const at::Tensor& values);
  std::map<std::string, std::string> hashes() const;
  uint64_t sum(const std::string& group) const;  // 0 without any

 private:
  std::map<std::string, uint64_t> sums_;  // by group
};

// Of what the ranks hold, in the dtype it is used in; reads every frozen weight once. `packed`: of
// weights in the store's groups that are held outside it, the same on every rank. Collective.
std::map<std::string, std::string> frozen_hashes(const ParamStore& store, Ranks& ranks,
                                                 const FrozenHasher& packed = {});

}  // namespace mgm
