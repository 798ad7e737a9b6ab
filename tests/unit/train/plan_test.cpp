// The plan's arithmetic: known peaks, volumes and times that can be worked out by hand, and what it
// advises.
#include <gtest/gtest.h>

#include <filesystem>

#include "tiny_model.h"
#include "train/build.h"
#include "train/plan/report.h"
#include "train/run_plan.h"

namespace mgm {
namespace {

constexpr double kGiB = 1 << 30;

PlannedModel recipe(const std::string& name, const std::vector<std::string>& sets = {}) {
  const ResolvedConfig resolved =
      read_run_config(cat(MGM_SOURCE_DIR, "/configs/", name, ".yaml"), sets);
  const ModelParts parts = describe_model(resolved);
  return plan_model(resolved.config, *parts.model, parts.policies);
}

Topology topology(DistMode mode, int world, int shard_size = 0) {
  DistConfig dist;
  dist.mode = mode;
  dist.shard_size = shard_size;
  return make_topology(dist, 0, world, world);
}

// ---- memory -------------------------------------------------------------------------------------

// Peaks of the device allocator on one H200 in bf16, decoder blocks recomputed.
TEST(PlanMemory, MeasuredPeaksOfOneH200) {
  const PlannedModel stage1 = recipe("stage1/vicuna_7b");
  const MemoryPlan one =
      plan_memory(stage1, topology(DistMode::kZero2, 1), false, even_shape(stage1, 16, 704, 1), 1);
  EXPECT_NEAR(one.peak() / kGiB, 19.6, 0.03 * 19.6);
  const PlannedModel stage2 = recipe("stage2/vicuna_7b");
  const MemoryPlan two =
      plan_memory(stage2, topology(DistMode::kZero2, 1), false, even_shape(stage2, 8, 1024, 1), 1);
  EXPECT_NEAR(two.peak() / kGiB, 118.4, 0.01 * 118.4);
  EXPECT_EQ(two.where, "backward of model.layers.31");
}

TEST(PlanMemory, WhatEachModeSaves) {
  const PlannedModel model = recipe("stage2/vicuna_7b");
  const BatchShape shape = even_shape(model, 8, 896, 1);
  const double trained = double(model.trained), all = double(model.params);
  const auto plan = [&](DistMode mode, int shard = 0, bool offload = false) {
    return plan_memory(model, topology(mode, 16, shard), offload, shape, 1);
  };
  const auto near = [](double value, double expected) {  // but for alignment
    EXPECT_NEAR(value / expected, 1, 1e-3);
  };
  const MemoryPlan replicate = plan(DistMode::kReplicate);
  near(replicate.state.weights, 2 * all);
  near(replicate.state.master, 4 * trained);
  near(replicate.state.moments, 8 * trained);
  near(replicate.state.gradients, 4 * trained);
  EXPECT_EQ(replicate.gathered, 0);
  EXPECT_EQ(replicate.buckets, 0);  // they add up in the gradient itself
  const MemoryPlan zero1 = plan(DistMode::kZero1);
  near(zero1.state.weights, 2 * all);
  near(zero1.state.moments, 8 * trained / 16);
  near(zero1.state.gradients, 4 * trained / 16);
  // zero1 keeps whole fp32 buffers until the step's last micro-batch has added to them.
  const MemoryPlan accumulated =
      plan_memory(model, topology(DistMode::kZero1, 16), false, shape, 4);
  EXPECT_GT(accumulated.buckets, 0.9 * 4 * trained);
  const MemoryPlan zero2 = plan(DistMode::kZero2);
  near(zero2.state.gradients, 4 * trained / 16);
  // Two blocks' fp32 gradients: one fills while the other leaves.
  const double block = 4 * double(model.sizes[1].trained);
  EXPECT_GE(zero2.buckets, block);
  EXPECT_LE(zero2.buckets, 2 * block + 1e6);
  const MemoryPlan zero3 = plan(DistMode::kZero3);
  near(zero3.state.weights, 2 * all / 16);
  EXPECT_NEAR(zero3.gathered / (2 * 2 * double(model.sizes[1].trained)), 1, 0.01);
  EXPECT_LT(zero3.total(), zero2.total());
  const MemoryPlan hybrid = plan(DistMode::kHybrid, 4);
  near(hybrid.state.weights, 2 * all / 4);
  near(hybrid.state.moments, 8 * trained / 4);
  const MemoryPlan offload = plan(DistMode::kZero2, 0, true);
  EXPECT_EQ(offload.state.master + offload.state.moments, 0);
  EXPECT_GT(offload.host, 12 * trained / 16);
  EXPECT_LT(offload.host, 1.2 * 12 * trained / 16 + 3 * 6 * block / 4);
  EXPECT_EQ(offload.buckets, zero2.buckets);
}

TEST(PlanMemory, RecomputationTradesActivations) {
  const PlannedModel full = recipe("stage2/vicuna_7b");
  const BatchShape shape = even_shape(full, 8, 1024, 1);
  const auto peak = [&](RecomputePolicy policy) {
    return plan_memory(full.with_decoder_recompute(policy), topology(DistMode::kZero2, 1), false,
                       shape, 1);
  };
  const double rows = double(shape.rows) * 2;
  const MemoryPlan none = peak(RecomputePolicy::kNone), some = peak(RecomputePolicy::kSelective);
  const MemoryPlan all = peak(RecomputePolicy::kFull);
  // Eight rows of the model's width, the input among them, and three of the MLP's. Where blocks
  // keep anything beside their input the head's backward is highest, 32 of them wait; else that of
  // the last block, 31 inputs do. Selective keeps the attention's result of each block.
  EXPECT_EQ(none.where, "backward of lm_head");
  EXPECT_EQ(some.where, "backward of lm_head");
  EXPECT_EQ(all.where, "backward of model.layers.31");
  const double kept = 32 * (8 * 4096 + 3 * 11008) - 31 * 4096;
  EXPECT_NEAR((none.kept - all.kept) / (rows * kept), 1, 0.01);
  EXPECT_NEAR((some.kept - all.kept) / ((2 * 32 - 31) * rows * 4096), 1, 0.05);
  EXPECT_LT(all.peak(), some.peak());
  EXPECT_LT(some.peak(), none.peak());
}

TEST(PlanMemory, PackedBlocksAreWholeAndSmall) {
  const PlannedModel dense = recipe("adapter/vicuna_7b_lora"),
                     packed = recipe("adapter/vicuna_7b_qlora");
  EXPECT_EQ(packed.params, dense.params);
  EXPECT_EQ(packed.trained, dense.trained);
  const double blocks = 32.0 * (4 * 4096 * 4096 + 3 * 4096 * 11008);
  EXPECT_NEAR(packed.packed / (blocks * 4.127 / 8), 1, 1e-3);
  const BatchShape shape{8, 8 * 1024, 8, 8};  // next to no logits: a block is highest
  const auto plan = [&](const PlannedModel& model, int world) {
    return plan_memory(model, topology(DistMode::kZero2, world), false, shape, 1);
  };
  for (const int world : {1, 8}) {
    const MemoryPlan whole = plan(dense, world), small = plan(packed, world);
    EXPECT_NEAR((whole.state.weights - small.state.weights) / (2 * blocks - packed.packed), 1,
                1e-3);
    EXPECT_EQ(whole.state.moments, small.state.moments);
    EXPECT_EQ(small.where, "backward of model.layers.31");
    // One matrix of the MLP at a time is there in bf16.
    EXPECT_NEAR(small.working - whole.working, 2.0 * 4096 * 11008, 1e6);
  }
}

// ---- communication ------------------------------------------------------------------------------

TEST(PlanComm, VolumesOfEveryMode) {
  const PlannedModel model = recipe("stage2/vicuna_7b");
  const BatchShape shape = even_shape(model, 8, 896, 1);
  Cluster cluster;
  cluster.world = 16;
  const double trained = double(model.trained), all = double(model.params);
  const double share = 15.0 / 16;
  const auto comm = [&](DistMode mode, int64_t micro_batches, int shard = 0) {
    return plan_comm(model, topology(mode, 16, shard), false, cluster, shape, micro_batches);
  };
  const auto near = [](double value, double expected) { EXPECT_NEAR(value / expected, 1, 1e-3); };
  const CommPlan replicate = comm(DistMode::kReplicate, 2);
  near(replicate.of(Traffic::kReplicas).bytes, 2 * share * 4 * trained);
  EXPECT_EQ(replicate.of(Traffic::kReduce).bytes, 0);
  const CommPlan zero1 = comm(DistMode::kZero1, 2);
  near(zero1.of(Traffic::kReduce).bytes, share * 4 * trained);  // once a step
  near(zero1.of(Traffic::kUpdate).bytes, share * 2 * trained);
  const CommPlan zero2 = comm(DistMode::kZero2, 2);
  near(zero2.of(Traffic::kReduce).bytes, 2 * share * 4 * trained);  // once a micro-batch
  near(zero2.of(Traffic::kUpdate).bytes, share * 2 * trained);
  EXPECT_EQ(zero2.of(Traffic::kGatherForward).bytes, 0);
  const CommPlan zero3 = comm(DistMode::kZero3, 2);
  // CLIP's last block and the norm behind it are never run, so never gathered.
  near(zero3.of(Traffic::kGatherForward).bytes, 2 * share * 2 * (all - 12.6e6));
  near(zero3.of(Traffic::kReduce).bytes, 2 * share * 4 * trained);
  EXPECT_EQ(zero3.of(Traffic::kUpdate).bytes, 0);
  // Backward needs what trains again, but for the head, which stays.
  const double head = 2.0 * 32000 * 4096;
  near(zero3.of(Traffic::kGatherBackward).bytes, 2 * share * (2 * trained - head));
  const CommPlan hybrid = comm(DistMode::kHybrid, 2, 4);
  near(hybrid.of(Traffic::kReduce).bytes, 2 * 0.75 * 4 * trained);
  near(hybrid.of(Traffic::kReplicas).bytes, 2 * 0.75 * 4 * trained / 4);
}

// Mixtral's experts over the eight GPUs of a node: a rank has an eighth of them, does the same
// work, and sends its rows out and back in both passes.
TEST(PlanExperts, DealtOnesTakeTheirShareAndSendRows) {
  const std::vector<std::string> dealt_to_8 = {"dist.expert_parallel=8"};
  const PlannedModel whole = recipe("stage2/mixtral_8x7b"),
                     dealt = recipe("stage2/mixtral_8x7b", dealt_to_8);
  EXPECT_EQ(dealt.params, whole.params);
  EXPECT_EQ(dealt.trained, whole.trained);
  const double experts = 32.0 * 8 * 3 * 4096 * 14336, all = double(whole.params);
  const auto with_8 = [](DistMode mode, int world) {
    DistConfig dist;
    dist.mode = mode;
    dist.expert_parallel = 8;
    return make_topology(dist, 0, world, 8);
  };
  const BatchShape shape = even_shape(whole, 4, 896, 1);
  const auto near = [](double value, double expected) { EXPECT_NEAR(value / expected, 1, 1e-3); };
  const auto state = [&](DistMode mode, int world) {
    return plan_memory(dealt, with_8(mode, world), false, shape, 1).state;
  };
  const double trained = double(whole.trained) - experts;  // of the rest
  near(state(DistMode::kReplicate, 16).weights, 2 * (all - experts * 7 / 8));
  near(state(DistMode::kReplicate, 16).moments, 8 * (trained + experts / 8));
  near(state(DistMode::kZero1, 16).moments, 8 * (trained + experts) / 16);
  near(state(DistMode::kZero1, 16).weights, 2 * (all - experts * 7 / 8));
  near(state(DistMode::kZero3, 16).weights, 2 * all / 16);
  near(state(DistMode::kZero3, 8).weights, 2 * ((all - experts) / 8 + experts / 8));

  Cluster cluster;
  cluster.world = 16;
  const auto comm = [&](DistMode mode) {
    return plan_comm(dealt, with_8(mode, 16), false, cluster, shape, 2);
  };
  const double rows = double(shape.rows) * 2 * 4096 * 2;  // bytes of two visits each, one way
  const CommPlan zero2 = comm(DistMode::kZero2);
  near(zero2.of(Traffic::kExperts).bytes, 2 * 4 * 32 * rows * 7 / 8);
  EXPECT_EQ(zero2.of(Traffic::kExperts).collectives, 2 * 4 * 32);
  // Both micro-batches: the rest over 16 ranks, an eighth of the experts over two.
  near(zero2.of(Traffic::kReduce).bytes, 2 * 4 * (trained * 15 / 16 + experts / 8 * 1 / 2));
  const CommPlan plain = plan_comm(whole, topology(DistMode::kZero2, 16), false, cluster, shape, 2);
  EXPECT_EQ(plain.of(Traffic::kExperts).bytes, 0);
  // The same work, but for the copies of gradients that other ranks now have.
  EXPECT_LT(zero2.compute_s, plain.compute_s);
  EXPECT_GT(zero2.compute_s, 0.8 * plain.compute_s);
}

TEST(PlanComm, TimeIsComputationWithFastWiresAndWiresWithSlowOnes) {
  const PlannedModel model = recipe("stage2/vicuna_7b");
  const BatchShape shape = even_shape(model, 8, 896, 1);
  Cluster cluster;
  cluster.world = 8;
  const Topology zero3 = topology(DistMode::kZero3, 8);
  cluster.link = 1e15;
  const CommPlan fast = plan_comm(model, zero3, false, cluster, shape, 1);
  EXPECT_LT(fast.exposed_s(), 0.01 * fast.step_s);
  EXPECT_NEAR(fast.compute_s + fast.optimizer_s + fast.exposed_s(), fast.step_s, 1e-9);
  double flops = 0;
  for (const UseFlops& use : use_flops(model, shape)) flops += use.all();
  EXPECT_GT(fast.compute_s, flops / cluster.flops);
  EXPECT_LT(fast.compute_s, 1.25 * flops / cluster.flops);
  cluster.link = 1e9;
  const CommPlan slow = plan_comm(model, zero3, false, cluster, shape, 1);
  EXPECT_NEAR(slow.step_s, slow.bytes() / cluster.link, 0.05 * slow.step_s);
  EXPECT_EQ(slow.compute_s, fast.compute_s);
  // Between nodes every GPU brings its own wire; the slower of both kinds counts.
  cluster.world = 16;
  cluster.link = 240e9;
  cluster.network = 5e9;
  const CommPlan two_nodes =
      plan_comm(model, topology(DistMode::kZero3, 16), false, cluster, shape, 1);
  EXPECT_NEAR(two_nodes.step_s, two_nodes.bytes() / (8 * 5e9), 0.1 * two_nodes.step_s);
}

TEST(PlanComm, OneRankSendsNothing) {
  const PlannedModel model = recipe("stage1/vicuna_7b");
  Cluster cluster;
  const CommPlan plan = plan_comm(model, topology(DistMode::kZero3, 1), false, cluster,
                                  even_shape(model, 16, 608, 1), 1);
  EXPECT_EQ(plan.bytes(), 0);
  EXPECT_EQ(plan.exposed_s(), 0);
  EXPECT_GT(plan.step_s, 0);
}

// ---- advice -------------------------------------------------------------------------------------

TEST(PlanModes, CheapestThatFits) {
  const PlannedModel model = recipe("stage2/vicuna_7b");
  PlanRequest request;
  request.cluster.world = 16;
  const ClusterPlan plan = plan_cluster(model, request);
  ASSERT_GE(plan.best, 0);
  EXPECT_EQ(plan.modes.size(), 10u);  // five modes, with and without offload
  const ModePlan& best = plan.modes[size_t(plan.best)];
  EXPECT_TRUE(best.fits && !best.offload) << best.name();
  EXPECT_FALSE(plan.modes[0].fits);  // replicate
  for (const ModePlan& mode : plan.modes) {
    EXPECT_EQ(mode.fits, mode.memory.total() <= request.cluster.gpu_memory) << mode.name();
    if (!mode.fits) continue;
    EXPECT_LE(best.comm.step_s, 1.005 * mode.comm.step_s) << mode.name();
  }
  EXPECT_TRUE(plan.help.empty());
}

TEST(PlanModes, WhatHelpsWhenNoneFits) {
  const PlannedModel model =
      recipe("stage2/yi_34b", {"train.recompute=[]", "train.micro_batch=16"});
  PlanRequest request;
  request.cluster.world = 8;
  const ClusterPlan plan = plan_cluster(model, request);
  EXPECT_EQ(plan.best, -1);
  ASSERT_FALSE(plan.help.empty());
  for (const std::string& help : plan.help) {
    const bool micro = help.rfind("train.micro_batch ", 0) == 0;
    const bool ranks = help.find(" ranks: ") != std::string::npos;
    const bool recompute = help.rfind("train.recompute", 0) == 0;
    EXPECT_TRUE(micro || ranks || recompute) << help;
    if (!ranks) continue;  // it is true
    request.cluster.world = std::stoi(help);
    EXPECT_GE(plan_cluster(model, request).best, 0) << help;
    request.cluster.world /= 2;
    EXPECT_LT(plan_cluster(model, request).best, 0) << help;
  }
}

TEST(PlanModes, RanksThatDoNotDivideTheBatchGetTheNextOne) {
  const PlannedModel model = recipe("stage2/vicuna_7b");
  PlanRequest request;
  request.cluster.world = 64;
  const ClusterPlan plan = plan_cluster(model, request);
  EXPECT_EQ(plan.global_batch, 512);
  EXPECT_EQ(plan.accumulation, 1);
  const std::string text = plan_text(model, plan);
  EXPECT_NE(text.find("train.global_batch 128 does not divide into 64 ranks"), text.npos) << text;
}

TEST(PlanReport, PeakBesideThePlan) {
  EXPECT_EQ(compare_with_plan(100 * kGiB, 104 * kGiB),
            "peak memory 100.00 GiB, planned 104.00 GiB (+4.0 %)");
}

}  // namespace
}  // namespace mgm
