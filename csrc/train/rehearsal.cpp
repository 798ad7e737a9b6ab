#include "train/rehearsal.h"

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"
#include "dist/rank_groups.h"

namespace mgm {
namespace {

constexpr size_t kDifferences = 10;
constexpr int64_t kStepCounts = 9;  // of train/step_agreement.cpp, beside three per micro-batch

// Writes down what the engine would issue. Groups of one rank communicate nothing and are not
// logged.
class Recorder final : public StepVisitor {
 public:
  Recorder(const RehearsalRun& run, const Topology& topology)
      : run_(run), topologies_(topology), groups_(topology) {}

  void gather(int g, bool frozen_too, const char* why) override {
    const GroupSize& size = sizes(g);
    for (const int64_t numel : {size.trained, frozen_too ? size.frozen : 0}) {
      if (numel == 0) continue;
      record(size.experts ? groups_.expert_gather : groups_.gather, "all_gather",
             cat(size.name, " for ", why), whole(g, numel), run_.compute_dtype);
    }
  }
  void arrive(int) override {}
  void release(int) override {}
  void scatter(int g, bool) override {
    const GroupSize& size = sizes(g);
    record(size.experts ? groups_.expert_reduce : groups_.reduce, "reduce_scatter", size.name,
           whole(g, size.trained), run_.reduce_dtype);
  }
  void collect(int, bool) override {}
  void keep(int) override {}
  void clear(int) override {}
  void sum_replicas(int g) override {
    record(sizes(g).experts ? groups_.expert_replica : groups_.replica, "all_reduce", sizes(g).name,
           part(g), run_.reduce_dtype);
  }
  void send_leaf(int g) override {
    const bool experts = sizes(g).experts;  // a leaf for every rank of an expert group
    record(experts ? groups_.expert_world : groups_.world, "all_to_all", sizes(g).name,
           part(g) * topologies_.run.world, "Float");
  }
  // How many rows travel is for the router to say: 0 stands for it.
  void before_forward(int use) override {
    const std::string* group = dealt(use);
    if (!group) return;
    record(groups_.exchange, "all_to_all", *group + kVisitsLabel, run_.experts, "Long");
    record(groups_.exchange, "all_to_all", *group, 0, run_.compute_dtype);
    if (run_.row_draws) record(groups_.exchange, "all_to_all", *group + kDrawsLabel, 0, "Long");
  }
  void forward(int use) override {
    const std::string* group = dealt(use);
    if (group)
      record(groups_.exchange, "all_to_all", *group + kResultsLabel, 0, run_.compute_dtype);
  }
  void before_backward(int use) override {
    const std::string* group = dealt(use);
    if (group)
      record(groups_.exchange, "all_to_all", *group + kResultsLabel + kBackwardLabel, 0,
             run_.compute_dtype);
  }
  void backward(int use) override {
    const std::string* group = dealt(use);
    if (group)
      record(groups_.exchange, "all_to_all", *group + kBackwardLabel, 0, run_.compute_dtype);
  }

  // What surrounds the passes: train/step_agreement.cpp, train/train_module.cpp and
  // optim/adamw.cpp.
  void agreement(int64_t micro_batches) {
    record(groups_.control, "all_reduce", "counts and votes of the step",
           3 * micro_batches + kStepCounts, "Long");
  }
  void loss(bool strict, int64_t leaves) {
    if (strict) {
      record(groups_.world, "all_gather", "loss of every leaf", leaves * topologies_.run.world,
             "Float");
    } else {
      record(groups_.world, "all_reduce", "loss", 1, "Float");
    }
  }
  void gradient_norm(bool strict) {
    if (!strict) {
      record(topologies_.run.expert_ranks > 1 ? groups_.world : groups_.reduce, "all_reduce",
             "gradient norm", 1, "Double");
      return;
    }
    for (size_t g = 0; g < run_.sizes.size(); ++g) {
      const GroupSize& size = run_.sizes[g];
      if (size.trained == 0) continue;
      const std::string label = size.name + " for the norm";
      const int64_t chunks = whole(static_cast<int>(g), size.trained) / kFlatAlign;
      record(size.experts ? groups_.expert_reduce : groups_.reduce, "all_gather", label, chunks,
             "Double");
      if (size.experts) {
        record(groups_.exchange, "all_gather", label,
               size.trained / kFlatAlign * topologies_.run.expert_ranks, "Double");
      }
    }
  }

  std::vector<CollectiveRecord> take() { return std::move(records_); }

 private:
  const GroupSize& sizes(int g) const { return run_.sizes[static_cast<size_t>(g)]; }
  const Topology& topology(int g) const { return topologies_.of(sizes(g).experts); }
  int64_t whole(int g, int64_t numel) const { return padded(numel, topology(g).shard_size); }
  int64_t part(int g) const { return whole(g, sizes(g).trained) / topology(g).shard_size; }
  // The group of a use of dealt experts; else null.
  const std::string* dealt(int use) const {
    const std::string& name = run_.order[static_cast<size_t>(use)].group;
    const auto it = std::find_if(run_.sizes.begin(), run_.sizes.end(),
                                 [&](const GroupSize& size) { return size.name == name; });
    return it != run_.sizes.end() && it->experts ? &it->name : nullptr;
  }

  void record(const GroupPlace& group, const char* operation, const std::string& label,
              int64_t numel, const std::string& dtype) {
    if (group.size == 1) return;
    CollectiveRecord out;
    out.sequence = sequence_[group.name]++;
    out.group = group.name;
    out.operation = operation;
    out.label = label;
    out.numel = numel;
    out.dtype = dtype;
    records_.push_back(std::move(out));
  }

  const RehearsalRun& run_;
  const Topologies topologies_;
  const RankGroups groups_;
  std::map<std::string, int64_t> sequence_;
  std::vector<CollectiveRecord> records_;
};

// "gather" of "gather.3".
std::string kind_of(const std::string& group) { return group.substr(0, group.find('.')); }

std::string describe(const std::vector<CollectiveRecord>& records, size_t i) {
  if (i >= records.size()) return "nothing more";
  const CollectiveRecord& r = records[i];
  return cat(kind_of(r.group), " ", r.operation, " '", r.label, "' of ", with_commas(r.numel), " ",
             r.dtype);
}

// One draw in [0, 1) that depends on what it is for alone.
double draw(uint64_t seed, const char* what, int64_t a, int64_t b) {
  return uniform01(rng_key(seed, what), static_cast<uint64_t>(a), static_cast<uint64_t>(b));
}

}  // namespace

std::vector<CollectiveRecord> rehearse_rank(const RehearsalRun& run, const RehearsedStep& step,
                                            int rank) {
  const Topology topology = make_topology(run.dist, rank, run.world, run.local_world);
  const bool strict = run.dist.reduction == Reduction::kStrict;
  const auto& mine = step.ranks[static_cast<size_t>(rank)];
  const auto micro_batches = static_cast<int64_t>(mine.size());
  const int64_t leaf = strict ? run.leaf : micro_batches;
  MGM_CHECK(leaf > 0 && micro_batches % leaf == 0, micro_batches,
            " micro-batches do not make leaves of ", leaf);

  Recorder recorder(run, topology);
  PassProgram program(program_groups(run.sizes), run.order, topology, strict, recorder);
  recorder.agreement(micro_batches);
  program.begin_step();
  for (int64_t i = 0; i < micro_batches; ++i) {
    MicroBatch agreed{false, false, (i + 1) % leaf == 0};
    for (const std::vector<RankBatch>& batches : step.ranks) {
      const RankBatch& batch = batches[static_cast<size_t>(i)];
      agreed.runs = agreed.runs || batch.targets;
      agreed.images = agreed.images || (batch.targets && batch.images);
    }
    RankBatch batch = mine[static_cast<size_t>(i)];
    // Nobody stays away from experts that are dealt (train/train_module.cpp).
    if (topology.expert_ranks > 1 && agreed.runs && !batch.targets) batch = {true, false};
    walk_micro_batch(program, run.order, agreed, batch, recorder);
  }
  program.end_step();
  recorder.loss(strict, micro_batches / leaf);
  recorder.gradient_norm(strict);
  program.parameters_changed();
  return recorder.take();
}

std::string first_difference(const std::vector<CollectiveRecord>& mine, int rank,
                             const std::vector<CollectiveRecord>& theirs, int other) {
  for (size_t i = 0; i < std::max(mine.size(), theirs.size()); ++i) {
    const std::string a = describe(mine, i), b = describe(theirs, i);
    if (a != b) return cat("collective ", i, ": rank ", rank, " has ", a, ", rank ", other, " ", b);
  }
  return "";
}

Rehearsal rehearse(const RehearsalRun& run, const std::vector<RehearsedStep>& steps) {
  Rehearsal out;
  for (size_t s = 0; s < steps.size(); ++s) {
    const std::vector<CollectiveRecord> first = rehearse_rank(run, steps[s], 0);
    out.per_step.push_back(static_cast<int64_t>(first.size()));
    for (const CollectiveRecord& record : first) {
      Rehearsal::Total& total = out.totals[{kind_of(record.group), record.operation}];
      ++total.collectives;
      total.elements += record.numel;
    }
    for (int rank = 1; rank < run.world && out.differences.size() < kDifferences; ++rank) {
      const std::string difference =
          first_difference(rehearse_rank(run, steps[s], rank), rank, first, 0);
      if (!difference.empty()) out.differences.push_back(cat("step ", s + 1, ", ", difference));
    }
  }
  return out;
}

std::vector<RehearsedStep> drawn_steps(int world, int64_t micro_batches, uint64_t seed) {
  std::vector<RehearsedStep> out;
  const auto step = [&](const char* what, const auto& batch) {
    RehearsedStep made;
    made.what = what;
    for (int rank = 0; rank < world; ++rank) {
      std::vector<RankBatch>& batches = made.ranks.emplace_back();
      for (int64_t i = 0; i < micro_batches; ++i) batches.push_back(batch(rank, i));
    }
    out.push_back(std::move(made));
  };
  const auto half = [&](int rank, int64_t i) { return draw(seed, "rehearsal", rank, i) < 0.5; };
  const int chosen = static_cast<int>(draw(seed, "rehearsal.one", 0, 0) * world);
  step("pictures on every rank", [&](int, int64_t) { return RankBatch{true, true}; });
  step("text only on some ranks", [&](int r, int64_t i) { return RankBatch{true, half(r, i)}; });
  step("pictures on one rank", [&](int r, int64_t) { return RankBatch{true, r == chosen}; });
  step("text only on every rank", [&](int, int64_t) { return RankBatch{true, false}; });
  step("no samples on some ranks",
       [&](int r, int64_t i) { return RankBatch{half(r, i), half(r + 1, i)}; });
  step("no samples in the last micro-batch",
       [&](int r, int64_t i) { return RankBatch{i + 1 < micro_batches, half(r, i)}; });
  return out;
}

}  // namespace mgm
