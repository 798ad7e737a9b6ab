#include "types/batch.h"

#include <ATen/ATen.h>

#include "types/upload.h"

namespace mgm {

Batch Batch::to(at::Device device) const {
  Batch out = *this;
  for (at::Tensor* t : {&out.input_ids, &out.positions, &out.seq.cu_seqlens, &out.images,
                        &out.image_rows, &out.target_rows, &out.targets}) {
    if (t->defined()) *t = upload(*t, device);
  }
  return out;
}

}  // namespace mgm
