#include "dist/whole_params.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/error.h"

namespace mgm {
namespace {

at::Tensor gather(const Flat& flat, const at::Tensor& part, Ranks& ranks,
                  const std::string& label) {
  if (ranks.topology.shard_size == 1) return part;
  const at::Tensor whole = at::empty({flat.padded}, part.options());
  ranks.gather->all_gather(whole, part, label).wait();
  return whole;
}

}  // namespace

void visit_whole_params(
    const ParamGroup& group, Ranks& ranks,
    const std::function<void(const Param& param, const at::Tensor& values)>& take) {
  const at::NoGradGuard no_grad;
  MGM_CHECK(!group.experts, group.name, " lies on the ranks of an expert group");
  for (const Flat* flat : {&group.trained, &group.frozen}) {
    if (flat->empty()) continue;
    const at::Tensor& part = flat == &group.trained ? group.master : flat->shard;
    // An offloaded master lies on the host, where NCCL does not reach.
    const at::Tensor there = part.detach().to(flat->shard.device());
    const at::Tensor whole = gather(*flat, there, ranks, group.name + " for a file");
    if (!ranks.is_first()) continue;
    for (const Segment& s : flat->segments) {
      take(*s.param, whole.narrow(0, s.offset, s.numel).view(s.param->spec.shape));
    }
  }
}

}  // namespace mgm
