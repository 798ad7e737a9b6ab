#include "train/step_walk.h"

#include <algorithm>
#include <map>
#include <string>

namespace mgm {

void walk_micro_batch(PassProgram& program, const std::vector<GroupUse>& order,
                      const MicroBatch& agreed, const RankBatch& mine, StepVisitor& visitor) {
  struct Computed {
    int use, backward_visit;
  };
  visitor.begin_pass(/*backward=*/false);
  program.begin_micro_batch(agreed);
  std::vector<Computed> computed;  // what gradients pass through
  bool upstream_trains = false;
  for (size_t u = 0; u < order.size() && mine.targets; ++u) {
    const GroupUse& use = order[u];
    if (use.vision && !mine.images) continue;
    visitor.before_forward(static_cast<int>(u));
    const int visit = program.enter(use.group);
    visitor.forward(static_cast<int>(u));
    const auto& groups = program.groups();
    const auto group = std::find_if(groups.begin(), groups.end(),
                                    [&](const auto& g) { return g.name == use.group; });
    const bool trains = group != groups.end() && group->trains;
    // As autograd sees it on this rank: without pictures, nothing behind them trains. Dealt experts
    // pass a gradient on where any rank's do.
    if (group != groups.end() && group->experts) {
      upstream_trains = upstream_trains || program.passes_gradient(use.group);
    }
    if (trains || (upstream_trains && !use.source)) {
      computed.push_back({static_cast<int>(u), program.backward_visit(visit)});
    }
    upstream_trains = upstream_trains || trains;
    program.leave(visit);
  }
  visitor.begin_pass(/*backward=*/true);
  for (auto it = computed.rbegin(); it != computed.rend(); ++it) {
    visitor.before_backward(it->use);
    program.enter_backward(it->backward_visit);
    visitor.backward(it->use);
  }
  program.end_micro_batch();
}

}  // namespace mgm
