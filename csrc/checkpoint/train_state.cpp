#include "checkpoint/train_state.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <set>

#include "base/error.h"

namespace mgm {
namespace {

// Trained parameters that checkpoint and run do not have in common.
void compare_parameters(const TrainCheckpoint& checkpoint, const std::vector<GroupState>& states) {
  std::vector<std::string> problems;
  std::set<std::string> wanted;
  for (const GroupState& state : states) {
    for (const Segment& s : state.group->trained.all_segments()) {
      const ParamSpec& spec = s.param->spec;
      wanted.insert(spec.name);
      if (!checkpoint.contains(spec.name)) {
        problems.push_back(spec.name + ": trains, but is not in it");
      } else if (checkpoint.place(spec.name).segment->shape != spec.shape) {
        problems.push_back(spec.name + ": of another shape in it");
      }
    }
  }
  for (const StateGroup& group : checkpoint.layout().groups) {
    for (const StateSegment& s : group.segments) {
      if (wanted.count(s.name) == 0) problems.push_back(s.name + ": in it, but does not train");
    }
  }
  if (problems.empty()) return;
  constexpr size_t kShown = 12;
  const size_t count = problems.size();
  if (count > kShown) problems.resize(kShown);
  throw CheckpointError(checkpoint.dir().string(), ": ", count, " trained parameters differ:\n  ",
                        join(problems, "\n  "), count > kShown ? "\n  ..." : "");
}

}  // namespace

std::vector<ShardTensor> shard_tensors(const std::vector<GroupState>& state,
                                       const Topology& topology) {
  std::vector<ShardTensor> out;
  for (const GroupState& s : state) {
    const Flat& flat = s.group->trained;
    const FlatRange range = written_range(*s.group, topology, topology.rank);
    if (range.size() == 0) continue;
    const int64_t at = range.begin - flat.dealt_begin - flat.begin;
    const at::Tensor* const kinds[] = {&s.group->master, &s.exp_avg, &s.exp_avg_sq};
    for (size_t k = 0; k < std::size(kStateKinds); ++k) {
      out.push_back({cat(kStateKinds[k], ".", s.group->name),
                     kinds[k]->detach().narrow(0, at, range.size())});
    }
  }
  return out;
}

void restore_train_state(const TrainCheckpoint& checkpoint, ParamStore& store,
                         const std::vector<GroupState>& states) {
  const at::NoGradGuard no_grad;
  compare_parameters(checkpoint, states);
  for (const GroupState& state : states) {
    const Flat& flat = state.group->trained;
    for (const Segment& s : flat.segments) {
      const std::string& name = s.param->spec.name;
      const ParamStore::Range mine = store.owned(name);
      if (mine.count == 0) continue;
      const auto read = [&](const char* kind, const TrainCheckpoint::Sink& sink) {
        checkpoint.read(kind, name, mine.first, mine.count, sink);
      };
      const auto into = [&](const at::Tensor& moment) {
        return [&, moment](int64_t first, const at::Tensor& values) {
          moment.narrow(0, s.offset + first - flat.begin, values.numel()).copy_(values);
        };
      };
      read("master",
           [&](int64_t first, const at::Tensor& values) { store.assign(name, first, values); });
      read("exp_avg", into(state.exp_avg));
      read("exp_avg_sq", into(state.exp_avg_sq));
    }
  }
}

}  // namespace mgm
