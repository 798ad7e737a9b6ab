#include "dist/wait_graph.h"

#include <set>

namespace mgm {

WaitGraph::WaitGraph(const std::vector<FlightRecord>& records) {
  for (const FlightRecord& r : records) {
    node_of_[r.rank] = rank_of_.size();
    rank_of_.push_back(r.rank);
  }
  place_ranks(records);
  connect();
}

void WaitGraph::place_ranks(const std::vector<FlightRecord>& records) {
  std::map<int, const FlightRecord*> of_rank;
  for (const FlightRecord& r : records) of_rank[r.rank] = &r;
  for (const FlightRecord& r : records) {
    for (const GroupPlace& place : r.groups) {
      const auto [it, fresh] = groups_.try_emplace(place.name);
      if (!fresh) continue;  // the other members say the same
      for (int i = 0; i < place.size; ++i) {
        const auto member = of_rank.find(place.first + i * place.stride);
        if (member == of_rank.end()) {
          has_absent_[place.name] = true;
        } else {
          it->second[member->first].record = member->second;
        }
      }
    }
  }
  for (const FlightRecord& r : records) {
    for (const CollectiveRecord& c : r.collectives) {
      LastEntered& last = groups_[c.group][r.rank];
      if (last.collective && last.sequence() >= c.sequence) continue;
      // A device's collective has been left by the host alone.
      last = {&r, &c, r.silent_s == 0 && (c.left_s == 0 || c.on_device)};
    }
  }
}

void WaitGraph::connect() {
  const size_t absent = rank_of_.size();
  edges_.resize(absent + 1);
  for (const auto& [name, progress] : groups_) {
    std::map<int64_t, std::vector<int>> by_sequence;
    for (const auto& [rank, last] : progress) by_sequence[last.sequence()].push_back(rank);
    // Those that left no record may be behind anybody.
    size_t below = has_absent_.count(name) > 0 ? absent : 0;
    bool any_below = has_absent_.count(name) > 0;
    for (const auto& [sequence, ranks] : by_sequence) {
      for (const int rank : ranks) {
        if (progress.at(rank).waits && any_below) edges_[node_of_.at(rank)].push_back(below);
      }
      std::vector<size_t> here;
      for (const int rank : ranks) here.push_back(node_of_.at(rank));
      if (any_below) here.push_back(below);
      edges_.push_back(std::move(here));
      below = edges_.size() - 1;
      any_below = true;
    }
  }
}

std::vector<bool> WaitGraph::reachable_from(size_t node) const {
  std::vector<bool> out(edges_.size());
  std::vector<size_t> open = {node};
  while (!open.empty()) {
    const size_t at = open.back();
    open.pop_back();
    for (const size_t next : edges_[at]) {
      if (out[next]) continue;
      out[next] = true;
      open.push_back(next);
    }
  }
  return out;
}

std::vector<Culprit> WaitGraph::culprits() const {
  const size_t ranks = rank_of_.size();
  std::vector<std::vector<bool>> reach(ranks);
  std::vector<bool> waited_for(ranks);
  for (size_t i = 0; i < ranks; ++i) {
    if (edges_[i].empty()) continue;
    reach[i] = reachable_from(i);
    for (size_t j = 0; j < ranks; ++j) waited_for[j] = waited_for[j] || reach[i][j];
  }
  std::set<int> found;
  for (size_t i = 0; i < ranks; ++i) {
    if (!waited_for[i]) continue;
    bool last_of_chain = true;  // whoever it waits for waits for it
    if (!edges_[i].empty()) {
      last_of_chain = !reach[i][ranks];
      for (size_t j = 0; j < ranks && last_of_chain; ++j) {
        last_of_chain = !reach[i][j] || (!edges_[j].empty() && reach[j][i]);
      }
    }
    if (last_of_chain) found.insert(rank_of_[i]);
  }
  std::vector<Culprit> out;
  for (const int rank : found) out.push_back(held_up_by(rank));
  return out;
}

Culprit WaitGraph::held_up_by(int rank) const {
  Culprit best;
  size_t most = 0;
  for (const auto& [name, progress] : groups_) {
    const auto own = progress.find(rank);
    if (own == progress.end()) continue;
    Culprit here;
    here.last = &own->second;
    size_t held_up = 0;
    for (const auto& [other, last] : progress) {
      if (!last.waits || last.sequence() <= own->second.sequence()) continue;
      ++held_up;
      if (here.missing && last.sequence() > here.missing->sequence) continue;
      if (!here.missing || last.sequence() < here.missing->sequence) here.waiting.clear();
      here.missing = last.collective;
      here.waiting.push_back(other);
    }
    if (held_up <= most) continue;
    most = held_up;
    best = here;
  }
  return best;
}

}  // namespace mgm
