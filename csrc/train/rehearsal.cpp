#include "train/rehearsal.h"

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"

namespace mgm {
namespace {

constexpr size_t kDifferences = 10;
constexpr int64_t kStepCounts = 9;  // of train/step_agreement.cpp, beside three per micro-batch

// Writes down what the engine would issue. Names of groups as in dist/ranks.cpp; groups of one rank
// communicate nothing and are not logged.
class Recorder final : public StepVisitor {
 public:
  Recorder(const RehearsalRun& run, const Topology& topology)
      : run_(run), topology_(topology), experts_(topology.of_experts()) {
    const std::string shard = "." + std::to_string(topology.replica_rank());
    gather_ = {"gather" + shard, topology.shard_size};
    reduce_ = {"reduce" + shard, topology.shard_size};
    replica_ = topology.shard_size == 1
                   ? Group{"world", topology.world}
                   : Group{"replica." + std::to_string(topology.shard_rank()), topology.replicas};
    if (topology.expert_ranks == 1) return;
    const auto of_experts = [&](const char* name, int which, int size) {
      return Group{cat(name, ".", topology.expert_rank(), ".", which), size};
    };
    expert_world_ = of_experts("expert_world", 0, experts_.world);
    expert_gather_ = of_experts("expert_gather", experts_.replica_rank(), experts_.shard_size);
    expert_reduce_ = of_experts("expert_reduce", experts_.replica_rank(), experts_.shard_size);
    expert_replica_ = experts_.shard_size == 1
                          ? expert_world_
                          : of_experts("expert_replica", experts_.shard_rank(), experts_.replicas);
    exchange_ = {cat("exchange.", topology.expert_group()), topology.expert_ranks};
  }

  void gather(int g, bool frozen_too, const char* why) override {
    const GroupSize& size = sizes(g);
    for (const int64_t numel : {size.trained, frozen_too ? size.frozen : 0}) {
      if (numel == 0) continue;
      record(size.experts ? expert_gather_ : gather_, "all_gather", cat(size.name, " for ", why),
             whole(g, numel), run_.compute_dtype);
    }
  }
  void arrive(int) override {}
  void release(int) override {}
  void scatter(int g, bool) override {
    const GroupSize& size = sizes(g);
    record(size.experts ? expert_reduce_ : reduce_, "reduce_scatter", size.name,
           whole(g, size.trained), run_.reduce_dtype);
  }
  void collect(int, bool) override {}
  void keep(int) override {}
  void clear(int) override {}
  void sum_replicas(int g) override {
    record(sizes(g).experts ? expert_replica_ : replica_, "all_reduce", sizes(g).name, part(g),
           run_.reduce_dtype);
  }
  void send_leaf(int g) override {
    const bool experts = sizes(g).experts;  // a leaf for every rank of an expert group
    record(experts ? expert_world_ : world_group(), "all_to_all", sizes(g).name,
           part(g) * topology_.world, "Float");
  }
  // How many rows travel is for the router to say: 0 stands for it.
  void before_forward(int use) override {
    const std::string* group = dealt(use);
    if (!group) return;
    record(exchange_, "all_to_all", *group + " visits", run_.experts, "Long");
    record(exchange_, "all_to_all", *group, 0, run_.compute_dtype);
    if (run_.row_draws) record(exchange_, "all_to_all", *group + " draws", 0, "Long");
  }
  void forward(int use) override {
    const std::string* group = dealt(use);
    if (group) record(exchange_, "all_to_all", *group + " results", 0, run_.compute_dtype);
  }
  void before_backward(int use) override {
    const std::string* group = dealt(use);
    if (group) record(exchange_, "all_to_all", *group + " results backward", 0, run_.compute_dtype);
  }
  void backward(int use) override {
    const std::string* group = dealt(use);
    if (group) record(exchange_, "all_to_all", *group + " backward", 0, run_.compute_dtype);
  }

  // What surrounds the passes: train/step_agreement.cpp, train/train_module.cpp and
  // optim/adamw.cpp.
  void agreement(int64_t micro_batches) {
    record({"control", topology_.world}, "all_reduce", "counts and votes of the step",
           3 * micro_batches + kStepCounts, "Long");
  }
  void loss(bool strict, int64_t leaves) {
    if (strict) {
      record(world_group(), "all_gather", "loss of every leaf", leaves * topology_.world, "Float");
    } else {
      record(world_group(), "all_reduce", "loss", 1, "Float");
    }
  }
  void gradient_norm(bool strict) {
    if (!strict) {
      record(topology_.expert_ranks > 1 ? world_group() : reduce_, "all_reduce", "gradient norm", 1,
             "Double");
      return;
    }
    for (size_t g = 0; g < run_.sizes.size(); ++g) {
      const GroupSize& size = run_.sizes[g];
      if (size.trained == 0) continue;
      const std::string label = size.name + " for the norm";
      const int64_t chunks = whole(static_cast<int>(g), size.trained) / kFlatAlign;
      record(size.experts ? expert_reduce_ : reduce_, "all_gather", label, chunks, "Double");
      if (size.experts) {
        record(exchange_, "all_gather", label, size.trained / kFlatAlign * topology_.expert_ranks,
               "Double");
      }
    }
  }

  std::vector<CollectiveRecord> take() { return std::move(records_); }

 private:
  struct Group {
    std::string name;
    int size = 1;
  };
  Group world_group() const { return {"world", topology_.world}; }
  const GroupSize& sizes(int g) const { return run_.sizes[static_cast<size_t>(g)]; }
  const Topology& topology(int g) const { return sizes(g).experts ? experts_ : topology_; }
  int64_t whole(int g, int64_t numel) const { return padded(numel, topology(g).shard_size); }
  int64_t part(int g) const { return whole(g, sizes(g).trained) / topology(g).shard_size; }
  // The group of a use of dealt experts; else null.
  const std::string* dealt(int use) const {
    const std::string& name = run_.order[static_cast<size_t>(use)].group;
    const auto it = std::find_if(run_.sizes.begin(), run_.sizes.end(),
                                 [&](const GroupSize& size) { return size.name == name; });
    return it != run_.sizes.end() && it->experts ? &it->name : nullptr;
  }

  void record(const Group& group, const char* operation, const std::string& label, int64_t numel,
              const std::string& dtype) {
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
  const Topology topology_, experts_;
  Group gather_, reduce_, replica_;
  Group expert_world_, expert_gather_, expert_reduce_, expert_replica_, exchange_;
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
