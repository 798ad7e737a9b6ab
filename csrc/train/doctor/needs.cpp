#include "train/doctor/needs.h"

#include <algorithm>

#include "train/plan/memory.h"
#include "train/run_plan.h"
#include "train/trainer.h"

namespace mgm {

Needs estimate_needs(const RunConfig& config, const ModelParts& parts, const DeviceSetup& device,
                     const Topology& topology) {
  constexpr int64_t kState = 12;    // fp32 master weight and two moments
  constexpr int64_t kChannels = 3;  // uint8 canvases
  const PlannedModel model = plan_model(config, *parts.model, parts.policies);
  const bool cuda = device.device.is_cuda();
  const bool offload = cuda && config.dist.offload == Offload::kOptimizer;
  int64_t mine = (model.trained + topology.shard_size - 1) / topology.shard_size;
  if (topology.expert_ranks > 1) {
    mine = 0;
    for (const GroupSize& size : model.sizes) {
      mine += size.trained / Topologies(topology).of(size.experts).shard_size;
    }
  }
  // A step of samples of the assumed mean length: what does not fit then, never will.
  const MemoryPlan memory =
      plan_memory(model, topology, offload,
                  even_shape(model, config.train.micro_batch, assumed_tokens(model), 1),
                  std::max<int64_t>(
                      1, config.train.global_batch / (config.train.micro_batch * topology.world)));

  Needs out;
  out.checkpoint = kState * model.trained;
  out.checkpoints = saves_regularly(config.checkpoint) ? config.checkpoint.keep + 1
                    : config.checkpoint.at_end         ? 1
                                                       : 0;
  out.device = cuda ? static_cast<int64_t>(memory.total()) : 0;
  out.begun = cuda ? static_cast<int64_t>(memory.context + memory.nccl) : 0;
  out.state = static_cast<int64_t>(cuda ? memory.host : memory.total());
  out.copy = saves_beside_training(config.checkpoint) ? mine * kState : 0;
  out.pinned = cuda ? out.copy + out.state : 0;
  const int64_t waiting = (config.data.prefetch + config.data.workers) * config.train.micro_batch;
  out.samples = waiting * kChannels * model.geometry.hr_size * model.geometry.hr_size;
  return out;
}

}  // namespace mgm
