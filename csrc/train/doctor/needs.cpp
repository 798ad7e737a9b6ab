#include "train/doctor/needs.h"

#include "train/run_plan.h"

namespace mgm {

Needs estimate_needs(const RunConfig& config, const ModelParts& parts, const DeviceSetup& device,
                     const Topology& topology) {
  constexpr int64_t kState = 12;    // fp32 master weight and two moments
  constexpr int64_t kText = 320;    // tokens assumed per sample: hardly matters beside weights
  constexpr int64_t kChannels = 3;  // uint8 canvases
  int64_t all = 0, trained = 0;
  for (const PartPlan& part : count_parts(parts.params, parts.policies)) {
    all += part.params;
    trained += part.trained;
  }
  const bool cuda = device.device.is_cuda();
  const bool offload = cuda && config.dist.offload == Offload::kOptimizer;
  const int64_t mine = (trained + topology.shard_size - 1) / topology.shard_size;
  const RunPlan plan = make_run_plan(config, *parts.model, parts.policies, kText);

  Needs out;
  out.checkpoint = kState * trained;
  out.checkpoints = config.checkpoint.keep + 1;
  if (cuda) {
    const int64_t weights = topology.shards_parameters() ? all / topology.shard_size : all;
    const int64_t element = static_cast<int64_t>(c10::elementSize(device.dtype));
    const bool cut = topology.reduces_every_micro_batch();
    out.device = weights * element + (offload ? 0 : mine * kState) + (cut ? mine : trained) * 4 +
                 static_cast<int64_t>(plan.activations + plan.logits);
  }
  if (offload) out.state = mine * (kState + 4);  // and the gradients
  if (!cuda) out.state = static_cast<int64_t>(plan.total_bytes());
  out.copy = config.checkpoint.asynchronous ? mine * kState : 0;
  out.pinned = cuda ? out.copy + out.state : 0;
  const int64_t waiting = (config.data.prefetch + config.data.workers) * config.train.micro_batch;
  out.samples = waiting * kChannels * plan.geometry.hr_size * plan.geometry.hr_size;
  return out;
}

}  // namespace mgm
