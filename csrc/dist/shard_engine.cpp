#include "dist/shard_engine.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/error.h"

namespace mgm {
namespace {

std::vector<ParamGroup*> groups_of(ParamStore& store) {
  std::vector<ParamGroup*> out;
  for (ParamGroup& group : store.groups()) out.push_back(&group);
  return out;
}

std::vector<PassProgram::Group> program_groups(const std::vector<ParamGroup*>& groups) {
  std::vector<PassProgram::Group> out;
  for (const ParamGroup* group : groups) {
    out.push_back({group->name, !group->trained.empty(), group->experts});
  }
  return out;
}

}  // namespace

ShardEngine::ShardEngine(ParamStore& store, Ranks& ranks, const std::vector<GroupUse>& order)
    : store_(store),
      ranks_(ranks),
      topology_(ranks.topology),
      reduce_dtype_(store.settings().bucket_dtype),
      groups_(groups_of(store)),
      program_(program_groups(groups_), order, ranks.topology, store.settings().strict, *this) {}

ShardEngine::~ShardEngine() = default;

// ---- the passes ---------------------------------------------------------------------------------

void ShardEngine::begin_step() {
  store_.begin_step();
  program_.begin_step();
  MGM_CHECK(reductions_.empty() && replica_sums_.empty(),
            "a step begins before the last has ended");
}

void ShardEngine::begin_micro_batch(const MicroBatch& micro) { program_.begin_micro_batch(micro); }

int ShardEngine::before_use(const std::string& name) { return program_.enter(name); }

void ShardEngine::after_use(int visit, const std::vector<at::Tensor>& outputs) {
  const int back = program_.backward_visit(visit);
  for (const at::Tensor& output : outputs) {
    if (back < 0 || !output.requires_grad()) continue;
    output.register_hook([this, back](const at::Tensor&) {
      const at::NoGradGuard no_grad;
      program_.enter_backward(back);
    });
  }
  program_.leave(visit);
}

void ShardEngine::end_micro_batch() {
  const at::NoGradGuard no_grad;
  program_.end_micro_batch();
}

void ShardEngine::end_step() {
  const at::NoGradGuard no_grad;
  program_.end_step();
  for (Reduction& r : replica_sums_) {
    r.pending.wait();
    if (!r.out.is_same(r.group->grad)) r.group->grad.copy_(r.out);
  }
  replica_sums_.clear();
  for (auto& [group, sum] : leaves_) group->grad.copy_(sum.take());
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    arrive(g);  // the optimizer is about to write what gathers read
  }
}

// ---- parameters ---------------------------------------------------------------------------------

void ShardEngine::gather(int number, bool frozen_too, const char* why) {
  ParamGroup& g = group(number);
  for (Flat* flat : {&g.trained, &g.frozen}) {
    if (flat->empty() || (flat == &g.frozen && !frozen_too)) continue;
    give_storage(*flat);
    arriving_[number].push_back(
        of(g, ranks_.gather, ranks_.expert_gather)
            .all_gather(flat->full, flat->shard, cat(g.name, " for ", why)));
  }
}

void ShardEngine::arrive(int number) {
  const auto it = arriving_.find(number);
  if (it == arriving_.end()) return;
  for (Pending& pending : it->second) pending.wait();
  arriving_.erase(it);
}

void ShardEngine::release(int number) {
  arrive(number);  // walked over without computing: still on its way
  for (Flat* flat : {&group(number).trained, &group(number).frozen}) take_storage(*flat);
}

void ShardEngine::parameters_changed() { program_.parameters_changed(); }

void ShardEngine::parameters_loaded() {
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    const Topology& t = group(g).topology;
    if (t.shard_size == 1 || t.shards_parameters()) continue;
    gather(g, /*frozen_too=*/true, "load");
    arrive(g);
  }
}

// ---- gradients ----------------------------------------------------------------------------------

void ShardEngine::keep(int number) {
  ParamGroup& g = group(number);
  finish_bucket(g, g.bucket, store_.settings(), /*keep=*/true);  // ParamGroup::grad itself
}

void ShardEngine::clear(int number) { group(number).grad.zero_(); }

void ShardEngine::scatter(int number, bool first) {
  ParamGroup& g = group(number);
  const at::Tensor bucket = finish_bucket(g, g.bucket, store_.settings(), /*keep=*/false);
  Reduction r;
  r.group = &g;
  r.in = bucket.scalar_type() == at::kDouble ? bucket : bucket.to(reduce_dtype_);
  const bool direct = first && r.in.scalar_type() == g.grad.scalar_type();
  r.out = direct ? g.grad : at::empty({g.trained.part}, r.in.options());
  r.pending = of(g, ranks_.reduce, ranks_.expert_reduce).reduce_scatter_sum(r.out, r.in, g.name);
  reductions_.push_back(std::move(r));
}

void ShardEngine::collect(int, bool first) {
  Reduction r = std::move(reductions_.front());
  reductions_.pop_front();
  r.pending.wait();
  if (r.out.is_same(r.group->grad)) return;
  if (first) {
    r.group->grad.copy_(r.out);
  } else {
    r.group->grad.add_(r.out);
  }
}

void ShardEngine::sum_replicas(int number) {
  ParamGroup& g = group(number);
  Reduction r;
  r.group = &g;
  r.out = g.grad.scalar_type() == at::kDouble ? g.grad : g.grad.to(reduce_dtype_);
  r.pending = of(g, ranks_.replica, ranks_.expert_replica).all_reduce_sum(r.out, g.name);
  replica_sums_.push_back(std::move(r));
}

// Strict: the leaf's fp32 gradient goes to whoever holds an element, and is summed there in leaf
// order. Leaf number: round * world + rank. Of dealt experts a rank has one leaf for every rank of
// its expert group, in their order.
void ShardEngine::send_leaf(int number) {
  ParamGroup& g = group(number);
  std::vector<at::Tensor> leaves;
  for (GradLane& lane : g.lanes) {
    leaves.push_back(finish_bucket(g, lane.bucket, store_.settings(), /*keep=*/false));
  }
  if (g.lanes.empty()) {
    leaves.push_back(finish_bucket(g, g.bucket, store_.settings(), /*keep=*/false));
  }
  StrictSum& sum = leaves_[&g];
  const Topology& t = g.topology;
  const int64_t part = g.trained.part, count = static_cast<int64_t>(leaves.size());
  if (t.world == 1) {
    for (at::Tensor& leaf : leaves) sum.push(std::move(leaf));
    return;
  }
  // [shard rank][leaf][element of the part]; replicas all get everything.
  at::Tensor in = leaves[0];
  if (count > 1) {
    in = at::stack(leaves).view({count, t.shard_size, part}).transpose(0, 1).reshape(-1);
    leaves.clear();
  }
  if (t.replicas > 1) {
    in = at::cat(std::vector<at::Tensor>(static_cast<size_t>(t.replicas), in));
  }
  const at::Tensor out = at::empty({t.world * count * part}, in.options());
  const std::vector<int64_t> rows(static_cast<size_t>(t.world), count * part);
  ProcessGroup& ranks = g.experts ? *ranks_.expert_world : *ranks_.world;
  ranks.all_to_all(out, in, rows, rows, g.name).wait();
  for (int64_t i = 0; i < t.world * count; ++i) sum.push(out.narrow(0, i * part, part));
  sum.compact();
}

}  // namespace mgm
