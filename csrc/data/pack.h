// From samples to a packed micro-batch (types/batch.h): one segment per sample.
#pragma once

#include "data/sample.h"
#include "types/batch.h"

namespace mgm {

// Samples in order; none at all is a batch of zero tokens. `holes`: places left empty, counted in
// the batch. Row t of the stream predicts the label of row t + 1 of the same segment.
Batch pack(const std::vector<Sample>& samples, int64_t holes, int64_t epoch);

// Tells the pictures of a run apart: by sample, epoch and place in the sample.
uint64_t image_key(int64_t sample, int64_t epoch, int64_t picture);

}  // namespace mgm
