#include "train/plan/memory.h"

#include <algorithm>
#include <map>

#include "base/strings.h"
#include "dist/rank_groups.h"
#include "train/step_agreement.h"
#include "train/step_walk.h"

namespace mgm {
namespace {

constexpr double kMiB = 1 << 20, kGiB = 1 << 30;
constexpr double kFp32 = 4, kFp64 = 8;

// What no tensor of ours explains, as seen with torch 2.11 on H100 and H200.
constexpr double kBlasWorkspace = 32 * kMiB;   // cuBLAS on Hopper, one stream; in the allocator
constexpr double kConvWorkspace = 256 * kMiB;  // cuDNN while encoders run; in the allocator
constexpr double kContext = 0.6 * kGiB;        // CUDA context, kernels of torch and its libraries
constexpr double kNcclPerGroup = 0.35 * kGiB;  // channels and buffers of one communicator
// Of activations and buckets: allocator blocks that are larger than what they hold, or free but
// cut.
constexpr double kFragmentation = 0.03;
// Gradients and weights of a group on their way between device and host (optim/host_update.h).
constexpr double kHostSlots = 3;

int64_t part(int64_t numel, const Topology& t) {
  return padded(numel, t.shard_size) / t.shard_size;
}

// Bytes that come and go while a rank walks through a step, and where they are highest.
class MemoryWalk final : public StepVisitor {
 public:
  MemoryWalk(const PlannedModel& model, const Topology& topology, const ActivationPlan& activations)
      : model_(model),
        topologies_(topology),
        strict_(model.config.dist.reduction == Reduction::kStrict),
        activations_(activations) {
    for (size_t u = 0; u < model.uses.size(); ++u) {
      if (model.uses[u].use.vision) last_vision_ = static_cast<int>(u);
    }
  }

  void gather(int g, bool frozen_too, const char*) override {
    const Topology& t = topology(g);
    if (!t.shards_parameters()) return;  // into copies that last
    const GroupSize& size = sizes(g);
    const double elements = double(padded(size.trained, t.shard_size)) +
                            (frozen_too ? double(padded(size.frozen, t.shard_size)) : 0);
    gathered_[g] = elements * model_.element;
  }
  void arrive(int) override {}
  void release(int g) override { gathered_.erase(g); }

  void scatter(int g, bool first) override {
    const double bytes = bucket(g);
    buckets_.erase(g);
    const int shards = topology(g).shard_size;
    const double reduced = double(padded(sizes(g).trained, shards)) * model_.reduce_element;
    // Cast where the bucket is not in the dtype that travels; received into the gradient itself
    // where that is possible.
    const bool cast = bytes > reduced, direct = first && model_.reduce_element == kFp32;
    leaving_.push_back(reduced + (direct ? 0 : reduced / double(shards)));
    note("reduction of " + sizes(g).name, kept_, cast ? bytes : 0);
  }
  void collect(int, bool) override { leaving_.erase(leaving_.begin()); }
  void keep(int) override {}
  void clear(int) override {}
  void sum_replicas(int g) override {
    if (model_.reduce_element < kFp32) {
      replica_copies_ += double(part(sizes(g).trained, topology(g))) * model_.reduce_element;
    }
  }
  void send_leaf(int g) override {
    const double bytes = bucket(g);
    buckets_.erase(g);
    const double mine = double(part(sizes(g).trained, topology(g))) * kFp32;
    // Every rank's leaf of this rank's part arrives at once.
    const Topology& t = topology(g);
    // Of dealt experts a leaf for every rank of an expert group: as many as ranks in any case.
    const double arriving = t.world > 1 ? mine * double(topologies_.run.world) : 0;
    const double sent =
        t.replicas > 1 || (t.world > 1 && sizes(g).experts) ? bytes * double(t.replicas) : 0;
    note("strict sum of " + sizes(g).name, kept_, bytes + arriving + sent);
    // Pairs of leaves are added as they meet: as many partial sums stay as the count has ones.
    leaves_[g] += topologies_.run.world;
    partials_[g] = mine * double(__builtin_popcountll(static_cast<uint64_t>(leaves_[g])));
  }

  void begin_pass(bool backward) override {
    if (!backward) kept_ = held_ = 0;  // the last micro-batch's graph is gone
  }
  void forward(int u) override {
    const PlannedUse& use = model_.uses[static_cast<size_t>(u)];
    const UseMemory& memory = activations_.uses[static_cast<size_t>(u)];
    const double encoding = held_ + (use.use.vision ? activations_.pixels + workspace(use) : 0);
    note("forward of " + use.use.group, kept_ + encoding, memory.forward);
    if (use.use.vision) plan.encoders = std::max(plan.encoders, encoding + memory.forward);
    kept_ += memory.kept;
    held_ += memory.held;
    if (u == last_vision_) held_ = 0;
  }

  void backward(int u) override {
    const PlannedUse& use = model_.uses[static_cast<size_t>(u)];
    const UseMemory& memory = activations_.uses[static_cast<size_t>(u)];
    if (use.trains()) bucket(use.group);
    kept_ -= memory.kept;
    note("backward of " + use.use.group, kept_, memory.backward);
  }

  void end_of_step() {
    leaving_.clear();
    // The norm's squares in fp64, group by group.
    if (strict_) {
      double largest = 0;
      for (const GroupSize& size : model_.sizes) {
        largest = std::max(largest, double(part(size.trained, topologies_.of(size.experts))));
      }
      note("strict gradient norm", kept_, 2 * kFp64 * largest);
    }
    replica_copies_ = 0;
    partials_.clear();
    leaves_.clear();
  }

  MemoryPlan plan;

 private:
  const GroupSize& sizes(int g) const { return model_.sizes[static_cast<size_t>(g)]; }
  const Topology& topology(int g) const { return topologies_.of(sizes(g).experts); }

  double workspace(const PlannedUse& use) const {
    const bool convolves =
        use.kind == UseKind::kConvnextStage || use.kind == UseKind::kConvnextStem;
    return convolves && !model_.on_cpu ? kConvWorkspace : 0;
  }

  // Bytes of a group's gradient before it leaves; made when the first gradient arrives. On a single
  // rank of a shard group it is the gradient itself.
  double bucket(int g) {
    const Topology& t = topology(g);
    if (t.shard_size == 1 && !strict_) return 0;
    const auto [it, fresh] = buckets_.try_emplace(g, 0);
    const bool travels = t.reduces_every_micro_batch() && !strict_;
    if (fresh) {
      const int lanes = strict_ && sizes(g).experts ? topologies_.run.expert_ranks : 1;
      it->second = double(padded(sizes(g).trained, t.shard_size)) *
                   (travels ? model_.reduce_element : kFp32) * lanes;
    }
    return it->second;
  }

  void note(const std::string& where, double kept, double working) {
    double gathered = 0, buckets = replica_copies_;
    for (const auto& [g, bytes] : gathered_) gathered += bytes;
    for (const auto& [g, bytes] : buckets_) buckets += bytes;
    for (const auto& [g, bytes] : partials_) buckets += bytes;
    for (const double bytes : leaving_) buckets += bytes;
    const double sum = gathered + buckets + kept + working;
    if (sum <= plan.gathered + plan.buckets + plan.kept + plan.working) return;
    plan.where = where;
    plan.gathered = gathered;
    plan.buckets = buckets;
    plan.kept = kept;
    plan.working = working;
  }

  const PlannedModel& model_;
  const Topologies topologies_;
  const bool strict_;
  const ActivationPlan& activations_;
  int last_vision_ = -1;
  double kept_ = 0, held_ = 0, replica_copies_ = 0;
  std::map<int, double> gathered_, buckets_, partials_;
  std::map<int, int64_t> leaves_;
  std::vector<double> leaving_;
};

}  // namespace

StateMemory state_memory(const std::vector<GroupSize>& sizes, const Topology& run, double element) {
  StateMemory out;
  const Topologies topologies(run);
  for (const GroupSize& size : sizes) {
    const Topology& topology = topologies.of(size.experts);
    const double trained = double(part(size.trained, topology));
    const double whole = double(padded(size.trained, topology.shard_size)) +
                         double(padded(size.frozen, topology.shard_size));
    out.weights +=
        element *
        (topology.shards_parameters() ? trained + double(part(size.frozen, topology)) : whole);
    out.master += element < kFp32 ? kFp32 * trained : 0;
    out.moments += 2 * kFp32 * trained;
    out.gradients += kFp32 * trained;
  }
  return out;
}

double MemoryPlan::peak() const {
  return state.weights + state.master + state.moments + state.gradients + gathered + buckets +
         kept + working + batch + workspaces;
}

MemoryPlan plan_memory(const PlannedModel& model, const Topology& topology, bool offload,
                       const BatchShape& shape, int64_t micro_batches) {
  const ActivationPlan activations = plan_activations(model, shape);
  const bool strict = model.config.dist.reduction == Reduction::kStrict;
  MemoryWalk walk(model, topology, activations);
  PassProgram program(program_groups(model.sizes), model.order, topology, strict, walk);
  program.begin_step();
  const bool images = shape.images > 0, targets = shape.targets > 0;
  const int64_t leaf = strict ? leaf_micro_batches(model.config) : micro_batches;
  for (int64_t i = 0; i < micro_batches; ++i) {
    walk_micro_batch(program, model.order, {targets, images, (i + 1) % leaf == 0},
                     {targets, images}, walk);
  }
  program.end_step();
  walk.end_of_step();

  MemoryPlan out = walk.plan;
  out.state = state_memory(model.sizes, topology, model.element);
  out.state.weights += model.packed;
  if (offload) {
    double trained = 0, largest = 0;
    const Topologies topologies(topology);
    for (const GroupSize& size : model.sizes) {
      const double mine = double(part(size.trained, topologies.of(size.experts)));
      trained += mine;
      largest = std::max(largest, mine);
    }
    out.host = 3 * kFp32 * trained + kHostSlots * (kFp32 + model.element) * largest;
    out.state.master = out.state.moments = 0;
  }
  out.batch = activations.batch;
  out.logits = activations.logits;
  if (!model.on_cpu) {
    out.workspaces = kBlasWorkspace;
    out.context = kContext;
    out.nccl = kNcclPerGroup * double(RankGroups(topology).connected().size());
    out.fragmentation = kFragmentation * (out.gathered + out.buckets + out.kept + out.working);
  }
  return out;
}

}  // namespace mgm
