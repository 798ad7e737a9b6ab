#include "types/vector_math.h"

#include <ATen/ATen.h>

namespace mgm {

void settle_vector_math() { at::zeros({1}).cos(); }

}  // namespace mgm
