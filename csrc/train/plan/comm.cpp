#include "train/plan/comm.h"

#include <algorithm>
#include <map>
#include <vector>

#include "dist/rank_groups.h"
#include "train/step_agreement.h"
#include "train/step_walk.h"

namespace mgm {
namespace {

// Start of a hop of a ring: NCCL's own model (tuning.cc) for NVLink and for the network, protocol
// Simple.
constexpr double kLinkHop = 3.4e-6, kNetworkHop = 14e-6;
// Encoders' share of the matrix rate: for eight pictures (9.3 TFLOP) ConvNeXt-L at 768 pixels took
// 36.5 ms and CLIP-L 8.6 to 15 ms on one H200.
constexpr double kEncoderShare = 0.4;
constexpr double kDeviceMemory = 2.7e12;  // achieved, HBM3 of an H100
constexpr double kAdamBytes = 32;         // per element (kernels/adamw.h), and 4 for the norm
constexpr double kPcie = 45e9;            // host to device, achieved, one GPU
// Host memory under AdamW: what 16 cores of a rank reached, and two sockets that a node's ranks
// share.
constexpr double kHostMemoryOfRank = 120e9, kHostMemoryOfNode = 480e9;
// Per element: master and moments read and written, gradient and bf16 weight written and read, by
// the cores and by the bus.
constexpr double kHostAdamBytes = 36;

constexpr double kFp32 = 4;

// Ranks that communicate, and how.
struct Ring {
  int size = 1, nodes = 1;
  double bandwidth = 0;

  double share() const { return size > 1 ? double(size - 1) / double(size) : 0; }
  double latency() const {  // of one way around
    return double(size - nodes) * kLinkHop + double(nodes - 1) * kNetworkHop;
  }
  bool crosses() const { return nodes > 1; }
};

Ring ring(const Cluster& c, const GroupPlace& group) {
  Ring out;
  out.size = group.size;
  const int per_node =
      std::max(1, std::min(group.size, c.gpus_per_node / std::min(group.stride, c.gpus_per_node)));
  out.nodes = (group.size + per_node - 1) / per_node;
  // Through the slower link; each rank of a node brings its own share of the network.
  out.bandwidth =
      out.crosses() ? std::min(per_node > 1 ? c.link : 1e300, c.network * per_node) : c.link;
  return out;
}

class TimeWalk final : public StepVisitor {
 public:
  TimeWalk(const PlannedModel& model, const Topology& topology, const Cluster& cluster,
           std::vector<UseFlops> flops, double routed_bytes)
      : model_(model),
        topologies_(topology),
        groups_(topology),
        cluster_(cluster),
        flops_(std::move(flops)),
        routed_bytes_(routed_bytes),
        shard_(ring(cluster, groups_.gather)),
        replica_(ring(cluster, groups_.replica)),
        world_(ring(cluster, groups_.world)),
        expert_shard_(ring(cluster, groups_.expert_gather)),
        expert_replica_(ring(cluster, groups_.expert_replica)),
        expert_world_(ring(cluster, groups_.expert_world)),
        exchange_(ring(cluster, groups_.exchange)) {}

  void gather(int g, bool frozen_too, const char* why) override {
    const GroupSize& size = sizes(g);
    const bool update = std::string(why) == "update";
    const Traffic kind = update      ? Traffic::kUpdate
                         : backward_ ? Traffic::kGatherBackward
                                     : Traffic::kGatherForward;
    for (const int64_t numel : {size.trained, frozen_too ? size.frozen : 0}) {
      if (numel == 0) continue;
      const double bytes = double(padded(numel, topology(g).shard_size)) * model_.element;
      arriving_[g] = {kind, send(kind, size.experts ? expert_shard_ : shard_, bytes, 1)};
    }
  }
  void arrive(int g) override {
    const auto it = arriving_.find(g);
    if (it == arriving_.end()) return;
    wait(it->second.first, it->second.second);
    arriving_.erase(it);
  }
  void release(int g) override { arrive(g); }

  void scatter(int g, bool) override {
    const double bytes =
        double(padded(sizes(g).trained, topology(g).shard_size)) * model_.reduce_element;
    scatters_.push_back(
        send(Traffic::kReduce, sizes(g).experts ? expert_shard_ : shard_, bytes, 1));
  }
  void collect(int, bool) override {
    wait(Traffic::kReduce, scatters_.front());
    scatters_.erase(scatters_.begin());
  }
  void keep(int) override {}
  void clear(int) override {}
  void sum_replicas(int g) override {
    const double bytes = part(sizes(g)) * model_.reduce_element;
    const Ring& over = sizes(g).experts ? expert_replica_ : replica_;
    replica_sums_ = std::max(replica_sums_, send(Traffic::kReplicas, over, bytes, 2));
  }
  void send_leaf(int g) override {          // the host waits: nothing hides it
    const bool experts = sizes(g).experts;  // with a leaf for every rank of an expert group
    const double leaves =
        double(topology(g).replicas) * (experts ? topologies_.run.expert_ranks : 1);
    const double bytes = double(padded(sizes(g).trained, topology(g).shard_size)) * kFp32 * leaves;
    wait(Traffic::kReduce, send(Traffic::kReduce, experts ? expert_world_ : world_, bytes, 1));
  }

  void begin_pass(bool backward) override { backward_ = backward; }
  void before_forward(int u) override { exchange(u); }
  void forward(int u) override {
    compute(u, flops_[static_cast<size_t>(u)].forward);
    exchange(u);
  }
  void before_backward(int u) override { exchange(u); }
  void backward(int u) override {
    const PlannedUse& use = model_.uses[static_cast<size_t>(u)];
    const UseFlops& flops = flops_[static_cast<size_t>(u)];
    compute(u, flops.recompute + flops.backward);
    // Every gradient is read once and added or copied into its bucket.
    const int holders = use.kind == UseKind::kExperts ? topologies_.run.expert_ranks : 1;
    const double copied = double(use.trained) / holders * (model_.element + kFp32);
    pass(copied / kDeviceMemory, plan.compute_s);
    exchange(u);
  }

  void end_passes() { wait(Traffic::kReplicas, replica_sums_); }
  void small(const Ring& over, int ways) {
    if (over.size > 1) wait(Traffic::kOther, send(Traffic::kOther, over, 8, ways));
  }
  void optimizer(bool offload) {
    small(world_, 2);  // loss
    small(shard_, 2);  // norm
    double elements = 0;
    for (const GroupSize& size : model_.sizes) elements += part(size);
    double seconds = elements * kFp32 / kDeviceMemory;
    if (offload) {
      // Gradients down, AdamW, weights up, group by group: the slowest of the three rules.
      const double host = std::min(
          kHostMemoryOfRank, kHostMemoryOfNode / std::min(cluster_.gpus_per_node, world_.size));
      seconds +=
          elements * std::max({kFp32 / kPcie, kHostAdamBytes / host, model_.element / kPcie});
    } else {
      seconds += elements * kAdamBytes / kDeviceMemory;
    }
    pass(seconds, plan.optimizer_s);
  }

  double now() const { return now_; }

  CommPlan plan;

 private:
  const GroupSize& sizes(int g) const { return model_.sizes[static_cast<size_t>(g)]; }
  const Topology& topology(int g) const { return topologies_.of(sizes(g).experts); }
  double part(const GroupSize& size) const {
    const int shards = topologies_.of(size.experts).shard_size;
    return double(padded(size.trained, shards)) / shards;
  }

  // Rows to dealt experts, or from them: what computes next waits.
  void exchange(int u) {
    if (model_.uses[static_cast<size_t>(u)].kind != UseKind::kExperts) return;
    wait(Traffic::kExperts, send(Traffic::kExperts, exchange_, routed_bytes_, 1));
  }
  void pass(double seconds, double& account) {
    now_ += seconds;
    account += seconds;
  }
  void compute(int u, double flops) {
    const bool encoder = model_.uses[static_cast<size_t>(u)].kind <= UseKind::kConvnextStage;
    pass(flops / (cluster_.flops * (encoder ? kEncoderShare : 1)), plan.compute_s);
  }
  void wait(Traffic kind, double until) {
    if (until <= now_) return;
    plan.volume[static_cast<size_t>(kind)].exposed_s += until - now_;
    now_ = until;
  }

  // Begins as soon as the wires it needs are free; returns when it will be done.
  double send(Traffic kind, const Ring& over, double buffer, int ways) {
    if (over.size == 1) return now_;
    const double bytes = ways * over.share() * buffer;
    CommPlan::Volume& volume = plan.volume[static_cast<size_t>(kind)];
    volume.bytes += bytes;
    ++volume.collectives;
    double start = now_;
    if (over.nodes < over.size) start = std::max(start, link_free_);
    if (over.crosses()) start = std::max(start, network_free_);
    const double done = start + ways * over.latency() + bytes / over.bandwidth;
    if (over.nodes < over.size) link_free_ = done;
    if (over.crosses()) network_free_ = done;
    return done;
  }

  const PlannedModel& model_;
  const Topologies topologies_;
  const RankGroups groups_;
  const Cluster& cluster_;
  const std::vector<UseFlops> flops_;
  const double routed_bytes_;  // of all rows that a rank sends to experts, its own among them
  const Ring shard_, replica_, world_;
  const Ring expert_shard_, expert_replica_, expert_world_, exchange_;
  bool backward_ = false;
  double now_ = 0, link_free_ = 0, network_free_ = 0, replica_sums_ = 0;
  std::map<int, std::pair<Traffic, double>> arriving_;
  std::vector<double> scatters_;
};

}  // namespace

const char* traffic_name(Traffic kind) {
  switch (kind) {
    case Traffic::kGatherForward:
      return "all-gather, forward";
    case Traffic::kGatherBackward:
      return "all-gather, backward";
    case Traffic::kReduce:
      return "reduce-scatter";
    case Traffic::kReplicas:
      return "all-reduce, replicas";
    case Traffic::kUpdate:
      return "all-gather, updates";
    case Traffic::kExperts:
      return "all-to-all, experts";
    case Traffic::kOther:
      return "loss and norm";
  }
  return "";
}

double CommPlan::bytes() const {
  double sum = 0;
  for (const Volume& v : volume) sum += v.bytes;
  return sum;
}

double CommPlan::exposed_s() const {
  double sum = 0;
  for (const Volume& v : volume) sum += v.exposed_s;
  return sum;
}

CommPlan plan_comm(const PlannedModel& model, const Topology& topology, bool offload,
                   const Cluster& cluster, const BatchShape& shape, int64_t micro_batches) {
  const LlmConfig& llm = model.config.model.llm;
  const double routed = double(shape.rows) * double(llm.experts_per_token * llm.hidden_size);
  TimeWalk walk(model, topology, cluster, use_flops(model, shape), routed * model.element);
  const bool strict = model.config.dist.reduction == Reduction::kStrict;
  const int64_t leaf = strict ? leaf_micro_batches(model.config) : micro_batches;
  PassProgram program(program_groups(model.sizes), model.order, topology, strict, walk);
  const bool images = shape.images > 0, targets = shape.targets > 0;
  const auto step = [&] {
    program.begin_step();
    for (int64_t i = 0; i < micro_batches; ++i) {
      walk_micro_batch(program, model.order, {targets, images, (i + 1) % leaf == 0},
                       {targets, images}, walk);
    }
    program.end_step();
    walk.end_passes();
    walk.optimizer(offload);
    program.parameters_changed();
  };
  step();  // updates of one step travel behind the next one's forward: the second is typical
  walk.plan = {};
  const double begin = walk.now();
  step();
  walk.plan.step_s = walk.now() - begin;
  return walk.plan;
}

}  // namespace mgm
