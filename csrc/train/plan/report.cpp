#include "train/plan/report.h"

#include <algorithm>
#include <functional>

#include "base/error.h"

namespace mgm {
namespace {

constexpr double kGiB = 1 << 30, kGB = 1e9;
constexpr double kDaySamples = 1.5e6;  // what days of training are given for

// ---- tables -------------------------------------------------------------------------------------

class Table {
 public:
  explicit Table(std::vector<const ModePlan*> modes) : modes_(std::move(modes)) {}

  void head(const std::string& title) {
    text_ += strf("%-28s", title.c_str());
    for (const ModePlan* mode : modes_) text_ += strf(" %12s", mode->name().c_str());
    text_ += "\n";
  }
  using Cell = std::function<std::string(const ModePlan&)>;
  void row(const std::string& name, const Cell& cell) {
    text_ += strf("%-28s", name.c_str());
    for (const ModePlan* mode : modes_) text_ += strf(" %12s", cell(*mode).c_str());
    text_ += "\n";
  }
  using Number = std::function<double(const ModePlan&)>;
  // Left out where all are zero.
  void gib(const std::string& name, const Number& number) {
    const bool any = std::any_of(modes_.begin(), modes_.end(),
                                 [&](const ModePlan* mode) { return number(*mode) > 0; });
    if (any) row(name, [&](const ModePlan& m) { return strf("%.2f", number(m) / kGiB); });
  }
  void ms(const std::string& name, const Number& number) {
    row(name, [&](const ModePlan& m) { return strf("%.1f", number(m) * 1e3); });
  }
  const std::string& text() const { return text_; }

 private:
  std::vector<const ModePlan*> modes_;
  std::string text_;
};

std::vector<const ModePlan*> without_offload(const ClusterPlan& plan) {
  std::vector<const ModePlan*> out;
  for (const ModePlan& mode : plan.modes) {
    if (!mode.offload) out.push_back(&mode);
  }
  return out;
}

const ModePlan& offloaded(const ClusterPlan& plan, const ModePlan& mode) {
  const auto it = std::find_if(plan.modes.begin(), plan.modes.end(), [&](const ModePlan& other) {
    return other.offload && other.mode == mode.mode;
  });
  MGM_CHECK(it != plan.modes.end(), mode.name(), " has no twin with offload");
  return *it;
}

std::string memory_table(const ClusterPlan& plan) {
  Table t(without_offload(plan));
  t.head("memory of a rank, GiB");
  t.gib("parameters", [](const ModePlan& m) { return m.memory.state.weights; });
  t.gib("fp32 master", [](const ModePlan& m) { return m.memory.state.master; });
  t.gib("Adam moments", [](const ModePlan& m) { return m.memory.state.moments; });
  t.gib("fp32 gradients", [](const ModePlan& m) { return m.memory.state.gradients; });
  t.gib("gathered parameters", [](const ModePlan& m) { return m.memory.gathered; });
  t.gib("gradients on their way", [](const ModePlan& m) { return m.memory.buckets; });
  t.gib("activations kept", [](const ModePlan& m) { return m.memory.kept; });
  t.gib("the block that runs", [](const ModePlan& m) { return m.memory.working; });
  t.gib("micro-batch, workspaces",
        [](const ModePlan& m) { return m.memory.batch + m.memory.workspaces; });
  t.gib("peak allocated", [](const ModePlan& m) { return m.memory.peak(); });
  t.gib("context, NCCL, fragments", [](const ModePlan& m) {
    return m.memory.context + m.memory.nccl + m.memory.fragmentation;
  });
  t.gib("total", [](const ModePlan& m) { return m.memory.total(); });
  const std::string limit = cat("fits ", human_bytes(plan.request.cluster.gpu_memory));
  const auto yes = [](const ModePlan& m) { return std::string(m.fits ? "yes" : "no"); };
  t.row(limit, yes);
  t.gib("with offload: total",
        [&](const ModePlan& m) { return offloaded(plan, m).memory.total(); });
  t.gib("  and on the host", [&](const ModePlan& m) { return offloaded(plan, m).memory.host; });
  t.row("  " + limit, [&](const ModePlan& m) { return yes(offloaded(plan, m)); });
  const MemoryPlan& first = plan.modes.front().memory;
  return t.text() + cat("peak at: ", first.where, "; logits with softmax and gradient ",
                        human_bytes(first.logits), ", encoders ", human_bytes(first.encoders),
                        " at theirs\n");
}

std::string time_table(const ClusterPlan& plan) {
  Table t(without_offload(plan));
  t.head("sent by a rank in a step, GB");
  const auto each = [](const std::function<void(Traffic)>& act) {
    for (int kind = 0; kind < kTrafficKinds; ++kind) act(static_cast<Traffic>(kind));
  };
  each([&](Traffic kind) {
    if (kind == Traffic::kExperts && plan.modes.front().topology.expert_ranks == 1) return;
    t.row(traffic_name(kind), [&](const ModePlan& m) {
      const CommPlan::Volume& v = m.comm.of(kind);
      return v.collectives == 0 ? std::string("-")
                                : strf("%.2f x%d", v.bytes / kGB, static_cast<int>(v.collectives));
    });
  });
  std::string out = t.text() + "\n";
  Table s(without_offload(plan));
  s.head("time of a step, ms");
  s.ms("forward and backward", [](const ModePlan& m) { return m.comm.compute_s; });
  s.ms("optimizer", [](const ModePlan& m) { return m.comm.optimizer_s; });
  s.ms("exposed communication", [](const ModePlan& m) { return m.comm.exposed_s(); });
  s.row("  share of the step", [](const ModePlan& m) {
    return strf("%.1f %%", 100 * m.comm.exposed_s() / m.comm.step_s);
  });
  s.ms("step", [](const ModePlan& m) { return m.comm.step_s; });
  s.ms("with offload", [&](const ModePlan& m) { return offloaded(plan, m).comm.step_s; });
  const double tokens = double(plan.time_shape.rows) * double(plan.accumulation);
  s.row("tokens/s per GPU", [&](const ModePlan& m) {
    return with_commas(static_cast<int64_t>(tokens / m.comm.step_s));
  });
  s.row("days for 1.5 M samples", [&](const ModePlan& m) {
    return strf("%.2g", kDaySamples / plan.samples_per_s(m) / 86400);
  });
  return out + s.text();
}

std::string machines(const Cluster& c) {
  if (c.world == 1) return "1 rank";
  const int nodes = (c.world + c.gpus_per_node - 1) / c.gpus_per_node;
  return cat(c.world, " ranks on ", nodes, nodes == 1 ? " node" : " nodes", " of ",
             c.gpus_per_node);
}

std::string advice(const PlannedModel& model, const ClusterPlan& plan) {
  std::string out;
  const int64_t wanted = model.config.train.global_batch;
  if (plan.global_batch != wanted) {
    out += cat("train.global_batch ", wanted, " does not divide into ", plan.request.cluster.world,
               " ranks with train.micro_batch ", plan.micro_batch, ": planned with ",
               plan.global_batch, ", which a run must be told\n");
  }
  if (plan.best < 0) {
    out += cat("no mode fits ", human_bytes(plan.request.cluster.gpu_memory),
               plan.help.empty() ? "; neither do fewer samples, more recomputation or more ranks\n"
                                 : "; each of these would help:\n");
    for (const std::string& help : plan.help) out += "  " + help + "\n";
    return out;
  }
  const ModePlan& best = plan.modes[static_cast<size_t>(plan.best)];
  out += cat("cheapest that fits: ", best.name(), ", ", human_bytes(best.memory.total()), ", ",
             strf("%.0f", best.comm.step_s * 1e3), " ms");
  if (best.offload) out += cat(", ", human_bytes(best.memory.host), " on the host");
  if (plan.configured >= 0 && plan.configured != plan.best) {
    const ModePlan& now = plan.modes[static_cast<size_t>(plan.configured)];
    out += cat(" (the config says ", now.name(), ": ", human_bytes(now.memory.total()),
               now.fits ? "" : ", does not fit", ", ", strf("%.0f", now.comm.step_s * 1e3), " ms)");
  }
  return out + "\n";
}

// ---- JSON ---------------------------------------------------------------------------------------

OrderedJson memory_json(const MemoryPlan& m) {
  return {{"parameters", m.state.weights},
          {"master", m.state.master},
          {"moments", m.state.moments},
          {"gradients", m.state.gradients},
          {"gathered", m.gathered},
          {"buckets", m.buckets},
          {"activations_kept", m.kept},
          {"working", m.working},
          {"batch", m.batch},
          {"workspaces", m.workspaces},
          {"peak_allocated", m.peak()},
          {"peak_at", m.where},
          {"context", m.context},
          {"nccl", m.nccl},
          {"fragmentation", m.fragmentation},
          {"total", m.total()},
          {"host", m.host},
          {"logits", m.logits},
          {"encoders", m.encoders}};
}

OrderedJson mode_json(const ClusterPlan& plan, const ModePlan& mode) {
  OrderedJson traffic = OrderedJson::object();
  for (int k = 0; k < kTrafficKinds; ++k) {
    const CommPlan::Volume& v = mode.comm.of(static_cast<Traffic>(k));
    traffic[traffic_name(static_cast<Traffic>(k))] = {
        {"bytes", v.bytes}, {"collectives", v.collectives}, {"exposed_s", v.exposed_s}};
  }
  return {{"mode", name_of(mode.mode)},
          {"shard_size", mode.topology.shard_size},
          {"offload", mode.offload},
          {"fits", mode.fits},
          {"memory", memory_json(mode.memory)},
          {"traffic", traffic},
          {"compute_s", mode.comm.compute_s},
          {"optimizer_s", mode.comm.optimizer_s},
          {"exposed_s", mode.comm.exposed_s()},
          {"step_s", mode.comm.step_s},
          {"samples_per_s", plan.samples_per_s(mode)}};
}

OrderedJson shape_json(const BatchShape& shape) {
  return {{"samples", shape.segments},
          {"tokens", shape.rows},
          {"images", shape.images},
          {"targets", shape.targets},
          {"longest", shape.longest}};
}

}  // namespace

std::string plan_text(const PlannedModel& model, const ClusterPlan& plan) {
  const Cluster& c = plan.request.cluster;
  const auto tokens = [](const BatchShape& s) {
    return with_commas(s.segments > 0 ? s.rows / s.segments : 0);
  };
  const bool asked = plan.request.tokens > 0;
  std::string out =
      cat(machines(c), "; memory for micro-batches of ", plan.micro_batch, " x ",
          tokens(plan.memory_shape), " tokens",
          asked ? "" : " (text.max_length, the longest there are)", ", time for ", plan.micro_batch,
          " x ", tokens(plan.time_shape), asked ? "" : " (assumed mean)", "\n\n",
          memory_table(plan), "\n", time_table(plan));
  out += strf("at %.0f TFLOP/s achieved, %.0f GB/s between GPUs", c.flops / 1e12, c.link / kGB);
  if (c.world > c.gpus_per_node) out += strf(", %.0f GB/s per GPU between nodes", c.network / kGB);
  return out + "\n\n" + advice(model, plan);
}

OrderedJson plan_json(const PlannedModel& model, const ClusterPlan& plan) {
  const Cluster& c = plan.request.cluster;
  OrderedJson modes = OrderedJson::array();
  for (const ModePlan& mode : plan.modes) modes.push_back(mode_json(plan, mode));
  OrderedJson best;  // null
  if (plan.best >= 0) best = plan.best;
  return {{"world", c.world},
          {"gpus_per_node", c.gpus_per_node},
          {"gpu_memory", c.gpu_memory},
          {"link", c.link},
          {"network", c.network},
          {"flops", c.flops},
          {"params", model.params},
          {"trained", model.trained},
          {"micro_batch", plan.micro_batch},
          {"micro_batches", plan.accumulation},
          {"global_batch", plan.global_batch},
          {"memory_shape", shape_json(plan.memory_shape)},
          {"time_shape", shape_json(plan.time_shape)},
          {"modes", modes},
          {"cheapest", best},
          {"help", plan.help}};
}

std::string plan_markdown(const std::vector<ClusterPlan>& plans) {
  std::string out =
      "| GPUs | batch | mode | memory, GiB | step, ms | exposed | samples/s | days for 1.5 M |\n"
      "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |\n";
  for (const ClusterPlan& plan : plans) {
    out +=
        cat("| ", with_commas(plan.request.cluster.world), " | ", with_commas(plan.global_batch));
    if (plan.best < 0) {
      out += " | none fits | | | | | |\n";
      continue;
    }
    const ModePlan& mode = plan.modes[static_cast<size_t>(plan.best)];
    out += strf(" | %s | %.1f | %.0f | %.1f %% | %.1f | %.2g |\n", mode.name().c_str(),
                mode.memory.total() / kGiB, mode.comm.step_s * 1e3,
                100 * mode.comm.exposed_s() / mode.comm.step_s, plan.samples_per_s(mode),
                kDaySamples / plan.samples_per_s(mode) / 86400);
  }
  return out;
}

}  // namespace mgm
