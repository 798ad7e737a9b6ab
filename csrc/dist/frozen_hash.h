// Hashes of frozen weights, one per group: what a checkpoint keeps instead of the weights. A sum of
// hashes of fixed chunks, so that it does not matter how many ranks hold them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dist/param_store.h"
#include "dist/ranks.h"

namespace mgm {

// Of what the ranks hold, in the dtype it is used in; reads every frozen weight once. Collective.
std::map<std::string, std::string> frozen_hashes(const ParamStore& store, Ranks& ranks);
// Of whole parameters: the same text.
std::map<std::string, std::string> frozen_hashes(const std::vector<Param*>& params,
                                                 const std::vector<ParamPolicy>& policies);

}  // namespace mgm
