#include "dist/pass_program.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace mgm {

PassProgram::PassProgram(std::vector<Group> groups, const std::vector<GroupUse>& order,
                         const Topology& topology, bool strict, PassActions& actions)
    : groups_(std::move(groups)), topologies_(topology), strict_(strict), actions_(actions) {
  std::map<std::string, int> numbers;
  for (size_t g = 0; g < groups_.size(); ++g) numbers[groups_[g].name] = static_cast<int>(g);
  bool upstream_trains = false;
  for (const GroupUse& use : order) {
    const auto it = numbers.find(use.group);
    const int group = it == numbers.end() ? -1 : it->second;
    const bool trains = group >= 0 && groups_[static_cast<size_t>(group)].trains;
    // What takes only data (pixels, ids) passes no gradient on.
    uses_.push_back({use.group, group, use.vision, trains || (upstream_trains && !use.source)});
    upstream_trains = upstream_trains || trains;
  }
}

bool PassProgram::passes_gradient(const std::string& name) const {
  return std::any_of(uses_.begin(), uses_.end(),
                     [&](const Use& use) { return use.name == name && use.backward; });
}

void PassProgram::begin_step() {
  MGM_CHECK(scatters_.empty(), "a step begins before the last has ended");
  summed_.clear();
}

// ---- the passes of a micro-batch ----------------------------------------------------------------

void PassProgram::plan_passes() {
  forward_ = backward_ = {};
  if (!micro_.runs) return;
  std::map<int, int> first, last;  // group -> use
  int last_use = -1;
  for (int u = 0; u < static_cast<int>(uses_.size()); ++u) {
    const Use& use = uses_[static_cast<size_t>(u)];
    if (use.vision && !micro_.images) continue;
    forward_.visits.push_back({u, false, false, false});
    first.try_emplace(use.group, u);
    last[use.group] = u;
    last_use = u;
  }
  const auto moves = [&](const Use& use) { return topology(use.group).shards_parameters(); };
  // Backward begins where forward ends: that group stays, and so does one with several uses, from
  // its first to its last.
  const auto stays = [&](const Use& use, int u) {
    return use.backward && (u == last_use || first[use.group] != last[use.group]);
  };
  for (Visit& visit : forward_.visits) {
    const Use& use = this->use(visit);
    if (use.group < 0 || !moves(use)) continue;
    visit.gathers = visit.use == first[use.group];
    visit.releases = visit.use == last[use.group] && !stays(use, visit.use);
  }
  for (auto it = forward_.visits.rbegin(); it != forward_.visits.rend(); ++it) {
    const Use& use = this->use(*it);
    if (!use.backward) continue;
    Visit visit{it->use, false, false, false};
    if (use.group >= 0) {
      visit.gathers = moves(use) && it->releases;
      visit.finishes = it->use == first[use.group];
      visit.releases = moves(use) && visit.finishes;
    }
    backward_.visits.push_back(visit);
  }
}

void PassProgram::begin_micro_batch(const MicroBatch& micro) {
  micro_ = micro;
  finished_.clear();
  plan_passes();
}

void PassProgram::leave(const Pass& pass, int v) {
  const Visit& visit = pass.at(v);
  if (visit.finishes) finish(use(visit).group, /*has_gradient=*/true);
  if (visit.releases) actions_.release(use(visit).group);
}

// Every visit below `v` is left and the group behind it is on its way before `v` computes.
// Forward visits that compute are left by leave(visit), as soon as they have; walking over one that
// does not compute leaves it here.
void PassProgram::enter(Pass& pass, int v) {
  for (; pass.next <= v; ++pass.next) {
    if (&pass == &backward_ && pass.next > 0) leave(pass, pass.next - 1);
    for (; pass.gathered_to < std::min(pass.next + 2, pass.size()); ++pass.gathered_to) {
      const Visit& visit = pass.at(pass.gathered_to);
      if (visit.gathers) actions_.gather(use(visit).group, /*frozen_too=*/true, "use");
    }
    if (&pass == &forward_ && pass.next < v) leave(pass, pass.next);
  }
  const int group = use(pass.at(v)).group;
  if (group >= 0) actions_.arrive(group);
}

int PassProgram::enter(const std::string& name) {
  for (int v = forward_.next; v < forward_.size(); ++v) {
    if (use(forward_.at(v)).name != name) continue;
    enter(forward_, v);
    return v;
  }
  throw InternalError("group ", name, " runs out of the declared order, or in a micro-batch that ",
                      micro_.runs ? (micro_.images ? "has passed it" : "was said to have no images")
                                  : "was said to be empty");
}

void PassProgram::leave(int v) { leave(forward_, v); }

int PassProgram::backward_visit(int v) const {
  const int use = forward_.at(v).use;
  if (!uses_[static_cast<size_t>(use)].backward) return -1;
  const auto it = std::find_if(backward_.visits.begin(), backward_.visits.end(),
                               [use](const Visit& b) { return b.use == use; });
  return static_cast<int>(it - backward_.visits.begin());
}

// Everything behind `v` in the backward order has run (autograd runs nodes in reverse order of
// their creation), the use's own nodes follow.
void PassProgram::enter_backward(int v) {
  if (v == backward_.next - 1) return;  // another output of the same use
  MGM_CHECK(v >= backward_.next, "backward of ", use(backward_.at(v)).name,
            " comes after its turn");
  enter(backward_, v);
}

void PassProgram::end_micro_batch() {
  if (forward_.size() > 0 && forward_.next < forward_.size()) {
    enter(forward_, forward_.size() - 1);
    leave(forward_, forward_.size() - 1);
  }
  if (backward_.size() > 0) {
    if (backward_.next < backward_.size()) enter(backward_, backward_.size() - 1);
    leave(backward_, backward_.size() - 1);
  }
  if (!micro_.last) return;
  for (auto it = uses_.rbegin(); it != uses_.rend(); ++it) {
    if (it->group >= 0 && finished_.count(it->group) == 0) finish(it->group, false);
  }
}

void PassProgram::parameters_changed() {
  // In run order: the next forward waits for one group at a time.
  std::set<int> seen;
  const auto gather = [&](int group) {
    if (group < 0 || !this->group(group).trains) return;
    const Topology& t = topology(group);
    if (t.shard_size == 1 || t.shards_parameters()) return;
    if (seen.insert(group).second) actions_.gather(group, /*frozen_too=*/false, "update");
  };
  for (const Use& use : uses_) gather(use.group);
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) gather(g);
}

// ---- gradients ----------------------------------------------------------------------------------

void PassProgram::finish(int group, bool has_gradient) {
  if (group < 0 || !this->group(group).trains) return;
  finished_.insert(group);
  if (strict_) {
    if (!micro_.last) return;
    actions_.send_leaf(group);
    summed_.insert(group);
    return;
  }
  const Topology& t = topology(group);
  const bool replicas = t.replicas > 1;
  if (t.reduces_every_micro_batch()) {
    if (has_gradient) {
      scatter(group, micro_.last && replicas);
    } else if (replicas) {
      absorb();
      if (summed_.insert(group).second) actions_.clear(group);
      actions_.sum_replicas(group);
    }
    return;
  }
  if (!micro_.last) return;
  if (t.shard_size > 1) {
    scatter(group, /*then_replicas=*/false);
    return;
  }
  actions_.keep(group);
  summed_.insert(group);
  if (replicas) actions_.sum_replicas(group);
}

void PassProgram::scatter(int group, bool then_replicas) {
  absorb();  // one bucket leaves while the next fills
  actions_.scatter(group, summed_.count(group) == 0);
  scatters_.push_back({group, then_replicas});
}

void PassProgram::absorb() {
  for (const Scatter& s : scatters_) {
    actions_.collect(s.group, summed_.insert(s.group).second);
    if (s.then_replicas) actions_.sum_replicas(s.group);
  }
  scatters_.clear();
}

void PassProgram::end_step() {
  absorb();
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    if (groups_[static_cast<size_t>(g)].trains && summed_.count(g) == 0) actions_.clear(g);
  }
}

}  // namespace mgm
