// Activation recomputation per block: keep a block's inputs, run it again when backward needs what
// it saved. Non-reentrant, through the autograd engine's saved-tensor hooks; drop path draws from
// counters, so no random state is kept.
#pragma once

#include <memory>
#include <vector>

#include "config/run_config.h"
#include "nn/block_runner.h"

namespace mgm {

// Must run before the first autograd operation of the process: makes saved-tensor hooks possible
// without Python by installing an engine that asks a thread-local stack for them.
void install_recompute_engine();

// Runs each group under the last rule that matches its name; other groups run in place.
// Policies: full keeps inputs only; selective also keeps attention outputs (ops/attention.h).
std::unique_ptr<BlockRunner> make_recompute_runner(std::vector<RecomputeRule> rules);

}  // namespace mgm
