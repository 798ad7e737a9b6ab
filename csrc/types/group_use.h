// The order in which a model's forward pass uses its parameter groups. No torch.
#pragma once

#include <string>

namespace mgm {

// One use of a group by a forward pass; a model lists them in the order they run.
struct GroupUse {
  std::string group;
  bool vision = false;  // runs only for batches with images
  bool source = false;  // takes data only (pixels, ids): no gradient passes on behind it
};

}  // namespace mgm
