// Whether an exported directory computes what the run's weights do: logits of both for one fixed
// prompt, with a picture unless only the language model was exported. In fp32 on the CPU, one model
// in memory after the other.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "assemble/model_dir.h"

namespace mgm {

struct ExportCheck {
  int64_t rows = 0, vocab = 0;  // of the logits
  double max_abs = 0, relative_l2 = 0;
};

// `value`: the run's weights, in the dtype the run used them in. Throws CheckpointError if the
// directory, which the caller then removes, cannot be loaded, if its logits differ by more than
// `tolerance` (relative L2), or if those of `value` are all zero or not finite.
ExportCheck verify_export(const fs::path& dir, const ModelDescription& description,
                          const Tokenizer& tokenizer,
                          const std::function<at::Tensor(Param&)>& value, bool llm_only,
                          double tolerance);

}  // namespace mgm
