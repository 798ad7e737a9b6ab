#include "dist/shard_engine.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"

namespace mgm {

ShardEngine::ShardEngine(ParamStore& store, Ranks& ranks, const std::vector<GroupUse>& order)
    : store_(store),
      ranks_(ranks),
      topology_(ranks.topology),
      reduce_dtype_(store.settings().bucket_dtype) {
  bool upstream_trains = false;
  for (const GroupUse& use : order) {
    ParamGroup* group = store.find_group(use.group);
    const bool trains = group && !group->trained.empty();
    // What takes only data (pixels, ids) passes no gradient on.
    uses_.push_back({use.group, group, use.vision, trains || (upstream_trains && !use.source)});
    upstream_trains = upstream_trains || trains;
  }
}

ShardEngine::~ShardEngine() = default;

void ShardEngine::begin_step() {
  store_.begin_step();
  summed_.clear();
  MGM_CHECK(reductions_.empty() && replica_sums_.empty(),
            "a step begins before the last has ended");
}

// ---- the program of a micro-batch ---------------------------------------------------------------

void ShardEngine::plan_passes() {
  forward_ = backward_ = {};
  if (!micro_.runs) return;
  std::map<const ParamGroup*, int> first, last;  // use
  int last_use = -1;
  for (int u = 0; u < static_cast<int>(uses_.size()); ++u) {
    const Use& use = uses_[static_cast<size_t>(u)];
    if (use.vision && !micro_.images) continue;
    forward_.visits.push_back({u, false, false, false});
    first.try_emplace(use.group, u);
    last[use.group] = u;
    last_use = u;
  }
  const bool moves = topology_.shards_parameters();
  // Backward begins where forward ends: that group stays, and so does one with several uses, from
  // its first to its last.
  const auto stays = [&](const Use& use, int u) {
    return use.backward && (u == last_use || first[use.group] != last[use.group]);
  };
  for (Visit& visit : forward_.visits) {
    const Use& use = uses_[static_cast<size_t>(visit.use)];
    if (!use.group || !moves) continue;
    visit.gathers = visit.use == first[use.group];
    visit.releases = visit.use == last[use.group] && !stays(use, visit.use);
  }
  for (auto it = forward_.visits.rbegin(); it != forward_.visits.rend(); ++it) {
    const Use& use = uses_[static_cast<size_t>(it->use)];
    if (!use.backward) continue;
    Visit visit{it->use, false, false, false};
    if (use.group) {
      visit.gathers = moves && it->releases;
      visit.finishes = it->use == first[use.group];
      visit.releases = moves && visit.finishes;
    }
    backward_.visits.push_back(visit);
  }
}

void ShardEngine::begin_micro_batch(const MicroBatch& micro) {
  micro_ = micro;
  finished_.clear();
  plan_passes();
}

void ShardEngine::leave(Program& program, int v) {
  const Visit& visit = program.visits[static_cast<size_t>(v)];
  ParamGroup* group = uses_[static_cast<size_t>(visit.use)].group;
  if (visit.finishes) finish(*group, /*has_gradient=*/true);
  if (visit.releases) release(*group);
}

// Every visit below `v` is left and the group behind it is on its way before `v` computes.
// Forward visits that compute are left by after_use, as soon as they have; walking over one that
// does not compute leaves it here.
void ShardEngine::enter(Program& program, int v) {
  for (; program.next <= v; ++program.next) {
    if (&program == &backward_ && program.next > 0) leave(program, program.next - 1);
    for (; program.gathered_to < std::min(program.next + 2, program.size());
         ++program.gathered_to) {
      const Visit& visit = program.visits[static_cast<size_t>(program.gathered_to)];
      if (visit.gathers) gather(*uses_[static_cast<size_t>(visit.use)].group, true, "use");
    }
    if (&program == &forward_ && program.next < v) leave(program, program.next);
  }
  const Visit& visit = program.visits[static_cast<size_t>(v)];
  if (ParamGroup* group = uses_[static_cast<size_t>(visit.use)].group) arrive(*group);
}

int ShardEngine::before_use(const std::string& name) {
  for (int v = forward_.next; v < forward_.size(); ++v) {
    if (uses_[static_cast<size_t>(forward_.visits[static_cast<size_t>(v)].use)].name != name) {
      continue;
    }
    enter(forward_, v);
    return v;
  }
  throw InternalError("group ", name, " runs out of the declared order, or in a micro-batch that ",
                      micro_.runs ? (micro_.images ? "has passed it" : "was said to have no images")
                                  : "was said to be empty");
}

void ShardEngine::after_use(int v, const std::vector<at::Tensor>& outputs) {
  const int use = forward_.visits[static_cast<size_t>(v)].use;
  if (uses_[static_cast<size_t>(use)].backward) {
    const auto it = std::find_if(backward_.visits.begin(), backward_.visits.end(),
                                 [use](const Visit& b) { return b.use == use; });
    const int back = static_cast<int>(it - backward_.visits.begin());
    for (const at::Tensor& output : outputs) {
      if (!output.requires_grad()) continue;
      output.register_hook([this, back](const at::Tensor&) { before_backward(back); });
    }
  }
  leave(forward_, v);
}

// The gradient of a group's output is there: everything behind it in the backward order has run
// (autograd runs nodes in reverse order of their creation), its own nodes follow.
void ShardEngine::before_backward(int v) {
  if (v == backward_.next - 1) return;  // another output of the same use
  MGM_CHECK(v >= backward_.next, "backward of ",
            uses_[static_cast<size_t>(backward_.visits[static_cast<size_t>(v)].use)].name,
            " comes after its turn");
  const at::NoGradGuard no_grad;
  enter(backward_, v);
}

void ShardEngine::end_micro_batch() {
  const at::NoGradGuard no_grad;
  if (forward_.size() > 0 && forward_.next < forward_.size()) {
    enter(forward_, forward_.size() - 1);
    leave(forward_, forward_.size() - 1);
  }
  if (backward_.size() > 0) {
    if (backward_.next < backward_.size()) enter(backward_, backward_.size() - 1);
    leave(backward_, backward_.size() - 1);
  }
  if (!micro_.last) return;
  for (ParamGroup* group : trained_groups()) {
    if (finished_.count(group) == 0) finish(*group, /*has_gradient=*/false);
  }
}

// ---- parameters ---------------------------------------------------------------------------------

void ShardEngine::gather(ParamGroup& group, bool frozen_too, const char* why) {
  for (Flat* flat : {&group.trained, &group.frozen}) {
    if (flat->empty() || (flat == &group.frozen && !frozen_too)) continue;
    give_storage(*flat);
    arriving_[&group].push_back(
        ranks_.gather->all_gather(flat->full, flat->shard, cat(group.name, " for ", why)));
  }
}

void ShardEngine::arrive(ParamGroup& group) {
  const auto it = arriving_.find(&group);
  if (it == arriving_.end()) return;
  for (Pending& pending : it->second) pending.wait();
  arriving_.erase(it);
}

void ShardEngine::release(ParamGroup& group) {
  arrive(group);  // walked over without computing: still on its way
  for (Flat* flat : {&group.trained, &group.frozen}) take_storage(*flat);
}

void ShardEngine::parameters_changed() {
  if (topology_.shard_size == 1 || topology_.shards_parameters()) return;
  // In run order: the next forward waits for one group at a time.
  std::set<const ParamGroup*> seen;
  for (const Use& use : uses_) {
    if (!use.group || use.group->trained.empty() || !seen.insert(use.group).second) continue;
    gather(*use.group, /*frozen_too=*/false, "update");
  }
  for (ParamGroup& group : store_.groups()) {
    if (!group.trained.empty() && seen.insert(&group).second) gather(group, false, "update");
  }
}

void ShardEngine::parameters_loaded() {
  if (topology_.shard_size == 1 || topology_.shards_parameters()) return;
  for (ParamGroup& group : store_.groups()) {
    gather(group, /*frozen_too=*/true, "load");
    arrive(group);
  }
}

// ---- gradients ----------------------------------------------------------------------------------

std::vector<ParamGroup*> ShardEngine::trained_groups() {
  std::vector<ParamGroup*> out;
  std::set<const ParamGroup*> seen;
  for (auto it = uses_.rbegin(); it != uses_.rend(); ++it) {
    if (!it->group || it->group->trained.empty() || !seen.insert(it->group).second) continue;
    out.push_back(it->group);
  }
  return out;
}

void ShardEngine::finish(ParamGroup& group, bool has_gradient) {
  if (group.trained.empty()) return;
  finished_.insert(&group);
  const StoreSettings& settings = store_.settings();
  if (settings.strict) {
    if (micro_.last) finish_leaf(group);
    return;
  }
  const bool replicas = topology_.replicas > 1;
  if (topology_.reduces_every_micro_batch()) {
    if (has_gradient) {
      scatter(group, finish_bucket(group, settings, /*keep=*/false), micro_.last && replicas);
    } else if (replicas) {
      absorb();
      if (summed_.insert(&group).second) group.grad.zero_();
      across_replicas(group);
    }
    return;
  }
  if (!micro_.last) return;
  if (topology_.shard_size > 1) {
    scatter(group, finish_bucket(group, settings, /*keep=*/false), /*then_replicas=*/false);
    return;
  }
  finish_bucket(group, settings, /*keep=*/true);  // group.grad itself
  summed_.insert(&group);
  if (replicas) across_replicas(group);
}

void ShardEngine::scatter(ParamGroup& group, at::Tensor bucket, bool then_replicas) {
  absorb();  // one bucket leaves while the next fills
  Reduction r;
  r.group = &group;
  r.then_replicas = then_replicas;
  r.in = bucket.scalar_type() == at::kDouble ? bucket : bucket.to(reduce_dtype_);
  const bool direct = summed_.count(&group) == 0 && r.in.scalar_type() == group.grad.scalar_type();
  r.out = direct ? group.grad : at::empty({group.trained.part}, r.in.options());
  r.pending = ranks_.reduce->reduce_scatter_sum(r.out, r.in, group.name);
  reductions_.push_back(std::move(r));
}

void ShardEngine::absorb() {
  for (Reduction& r : reductions_) {
    r.pending.wait();
    if (!r.out.is_same(r.group->grad)) {
      if (summed_.count(r.group) > 0) {
        r.group->grad.add_(r.out);
      } else {
        r.group->grad.copy_(r.out);
      }
    }
    summed_.insert(r.group);
    if (r.then_replicas) across_replicas(*r.group);
  }
  reductions_.clear();
}

void ShardEngine::across_replicas(ParamGroup& group) {
  Reduction r;
  r.group = &group;
  r.out = group.grad.scalar_type() == at::kDouble ? group.grad : group.grad.to(reduce_dtype_);
  r.pending = ranks_.replica->all_reduce_sum(r.out, group.name);
  replica_sums_.push_back(std::move(r));
}

// Strict: the leaf's fp32 gradient goes to whoever holds an element, and is summed there in leaf
// order. Leaf number: round * world + rank.
void ShardEngine::finish_leaf(ParamGroup& group) {
  const at::Tensor leaf = finish_bucket(group, store_.settings(), /*keep=*/false);
  StrictSum& sum = leaves_[&group];
  const int64_t part = group.trained.part;
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
  ranks_.world->all_to_all(out, in, rows, rows, group.name).wait();
  for (int rank = 0; rank < world; ++rank) sum.push(out.narrow(0, rank * part, part));
  sum.compact();
}

void ShardEngine::end_step() {
  const at::NoGradGuard no_grad;
  absorb();
  for (Reduction& r : replica_sums_) {
    r.pending.wait();
    if (!r.out.is_same(r.group->grad)) r.group->grad.copy_(r.out);
  }
  replica_sums_.clear();
  for (auto& [group, sum] : leaves_) {
    group->grad.copy_(sum.take());
    summed_.insert(group);
  }
  for (ParamGroup& group : store_.groups()) {
    if (group.grad.defined() && summed_.count(&group) == 0) group.grad.zero_();
    arrive(group);  // the optimizer is about to write what gathers read
  }
}

}  // namespace mgm
