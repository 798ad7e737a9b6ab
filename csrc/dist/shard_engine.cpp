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
  for (const ParamGroup* group : groups) out.push_back({group->name, !group->trained.empty()});
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
        ranks_.gather->all_gather(flat->full, flat->shard, cat(g.name, " for ", why)));
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
  if (topology_.shard_size == 1 || topology_.shards_parameters()) return;
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    gather(g, /*frozen_too=*/true, "load");
    arrive(g);
  }
}

// ---- gradients ----------------------------------------------------------------------------------

void ShardEngine::keep(int number) {
  finish_bucket(group(number), store_.settings(), /*keep=*/true);  // ParamGroup::grad itself
}

void ShardEngine::clear(int number) { group(number).grad.zero_(); }

void ShardEngine::scatter(int number, bool first) {
  ParamGroup& g = group(number);
  const at::Tensor bucket = finish_bucket(g, store_.settings(), /*keep=*/false);
  Reduction r;
  r.group = &g;
  r.in = bucket.scalar_type() == at::kDouble ? bucket : bucket.to(reduce_dtype_);
  const bool direct = first && r.in.scalar_type() == g.grad.scalar_type();
  r.out = direct ? g.grad : at::empty({g.trained.part}, r.in.options());
  r.pending = ranks_.reduce->reduce_scatter_sum(r.out, r.in, g.name);
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
  r.pending = ranks_.replica->all_reduce_sum(r.out, g.name);
  replica_sums_.push_back(std::move(r));
}

// Strict: the leaf's fp32 gradient goes to whoever holds an element, and is summed there in leaf
// order. Leaf number: round * world + rank.
void ShardEngine::send_leaf(int number) {
  ParamGroup& g = group(number);
  const at::Tensor leaf = finish_bucket(g, store_.settings(), /*keep=*/false);
  StrictSum& sum = leaves_[&g];
  const int64_t part = g.trained.part;
  const int world = topology_.world;
  if (world == 1) {
    sum.push(leaf);
    return;
  }
  const at::Tensor in =
      topology_.replicas == 1
          ? leaf
          : at::cat(std::vector<at::Tensor>(static_cast<size_t>(topology_.replicas), leaf));
  const at::Tensor out = at::empty({world * part}, leaf.options());
  const std::vector<int64_t> rows(static_cast<size_t>(world), part);
  ranks_.world->all_to_all(out, in, rows, rows, g.name).wait();
  for (int rank = 0; rank < world; ++rank) sum.push(out.narrow(0, rank * part, part));
  sum.compact();
}

}  // namespace mgm
