// Whether weights are those of the model that the config.json beside them describes.
#pragma once

#include "base/json.h"
#include "checkpoint/tensor_source.h"

namespace mgm {

// From headers, without memory for the model. `config` is a language model's or a Mini-Gemini
// model's config.json, `source` its name in errors; towers that lie beside a Mini-Gemini model may
// lack. Looks at nothing where `weights` hold no language model: a tower, a projector, an adapter.
// Throws CheckpointError with what a start from them would be refused for: an architecture or a
// field that is not supported, and the lists of weights that are missing, unused or of another
// shape.
void check_weights_of(const Json& config, const std::string& source, const TensorSource& weights);

}  // namespace mgm
