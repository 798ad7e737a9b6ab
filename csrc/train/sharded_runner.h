// The BlockRunner of training: brings a group's parameters in before its block runs and lets them
// go behind it (dist/shard_engine.h), around the runner that decides about recomputation.
#pragma once

#include <memory>

#include "dist/shard_engine.h"
#include "nn/block_runner.h"

namespace mgm {

// `engine` must outlive the runner.
std::unique_ptr<BlockRunner> make_sharded_runner(ShardEngine& engine,
                                                 std::unique_ptr<BlockRunner> inner);

}  // namespace mgm
