#include "train/run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <unistd.h>

#include "base/log.h"
#include "base/signal.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_saver.h"
#include "checkpoint/mm_projector_file.h"
#include "config/writer.h"
#include "dist/agreement.h"
#include "dist/flight_record.h"
#include "dist/frozen_hash.h"
#include "dist/whole_params.h"
#include "train/build.h"
#include "train/doctor/start_check.h"
#include "train/hooks/metrics_file.h"
#include "train/hooks/progress.h"
#include "train/hooks/tensorboard.h"
#include "train/rank_setup.h"
#include "train/recompute.h"
#include "train/run_plan.h"
#include "train/run_starts.h"
#include "train/trainer.h"

namespace mgm {
namespace {

bool trains_llm(const ModelParts& parts) {
  for (size_t i = 0; i < parts.params.size(); ++i) {
    if (!parts.policies[i].train) continue;
    const std::string& name = parts.params[i]->spec.name;
    if (!in_projector_file(name)) return true;
  }
  return false;
}

bool holds_projector_file(const ParamGroup& group) {
  for (const Flat* flat : {&group.trained, &group.frozen}) {
    for (const Segment& s : flat->segments) {
      if (in_projector_file(s.param->spec.name)) return true;
    }
  }
  return false;
}

// Projector, mining and towers; what trained in fp32, the rest as it was used. Collective: the
// parts of all ranks come together on rank 0, group by group.
void write_projector(const fs::path& path, const ParamStore& store, Ranks& ranks) {
  std::vector<TensorSpec> tensors;
  std::map<std::string, at::Tensor> values;
  for (const ParamGroup& group : store.groups()) {
    if (!holds_projector_file(group)) continue;
    visit_whole_params(group, ranks, [&](const Param& param, const at::Tensor& whole) {
      const ParamSpec& spec = param.spec;
      if (!in_projector_file(spec.name)) return;
      tensors.push_back({spec.name, whole.scalar_type(), spec.shape});
      values[spec.name] = whole.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
    });
  }
  together(ranks, "projector file", [&] {
    if (!ranks.is_first()) return;
    write_projector_file(path, tensors, [&](const std::string& name) { return values.at(name); });
    log::info(cat("wrote ", path.string()));
  });
}

void log_start(const RunConfig& config, const ModelParts& parts, const DataParts& data,
               const DeviceSetup& device, const Ranks& ranks) {
  if (ranks.size() > 1) {
    log::info(cat(ranks.size(), " ranks (", ranks.env.launcher, "), ", describe(ranks.topology),
                  ", ", config.dist.reduction == Reduction::kStrict ? "strict" : "fast",
                  " reduction"));
  }
  log::info(cat("device ", device.device.str(), ", ", at::toString(device.dtype), ", ",
                at::get_num_threads(), " threads; seed ", config.train.seed));
  if (config.train.deterministic) {
    log::info(
        device.device.is_cuda()
            ? "deterministic: bit-equal from run to run; deterministic cuDNN and cuBLAS, no atomic "
              "adds (its cost: docs/training.md)"
            : "deterministic: bit-equal from run to run; on the CPU this is always so and costs "
              "nothing");
  }
  if (config.dist.offload == Offload::kOptimizer && !device.device.is_cuda()) {
    log::info(
        "dist.offload: optimizer changes nothing on the CPU: fp32 weights and moments are in host "
        "memory as it is");
  }
  log::info("\n" + format_trained_table(count_parts(parts.params, parts.policies)));
  log::info(cat(with_commas(data.plan->num_samples()), " samples, ", data.total_steps, " steps of ",
                config.train.global_batch, " = ",
                config.train.global_batch / config.train.micro_batch / ranks.size(), " x ",
                config.train.micro_batch, " on each rank"));
}

ExitCode run_ranks(const ResolvedConfig& resolved, const ResumeOptions& resume,
                   const DeviceSetup& device, Ranks& ranks, Watch& watch) {
  const RunConfig& config = resolved.config;
  check_ranks_agree(ranks, config, device);
  join(ranks, config, device);
  install_recompute_engine();
  const ModelParts parts = describe_model(resolved);
  const DataParts data = open_data(resolved);
  const bool first = ranks.is_first();

  const fs::path dir = config.run.dir;
  make_dirs(dir / "logs");
  std::optional<FileLock> lock;
  if (first) lock.emplace(dir / ".lock", cat("run folder ", dir.string()));
  if (first) retire_flight_records(dir);
  log::set_quiet(!first);
  log::add_file((dir / "logs" / cat("rank_", ranks.rank(), ".log")).string());

  // Refuses a batch that the ranks cannot share; reading large weights takes minutes.
  micro_batches_per_rank(config.train.global_batch, config.train.micro_batch,
                         leaf_micro_batches(config), ranks.size());
  RunIdentity identity = identify(data, device);
  check_inputs_agree(ranks, config, identity, parts, device, FolderUse::kWrite);
  const ResumeOptions wanted = first ? after_restart(dir, resume, ranks.env) : resume;
  const std::optional<TrainCheckpoint> checkpoint =
      choose_checkpoint(resolved, identity, wanted, ranks);
  const int64_t done = checkpoint ? checkpoint->step() : 0;
  const fs::path projector = dir / "mm_projector.bin";
  const bool leaves_projector =
      !trains_llm(parts) || config.model.init == ModelInit::kRandom;  // pretraining of the towers
  if (done > data.total_steps) {
    throw ConfigError(checkpoint->dir().string(), " is of step ", done, ", the config asks for ",
                      data.total_steps, config.train.max_steps > 0 ? " (train.max_steps)" : "",
                      ": the run has passed that already. Ask for more steps, or go back with "
                      "--resume and a checkpoint of an earlier step.");
  }
  if (checkpoint && done >= data.total_steps && (!leaves_projector || fs::exists(projector))) {
    log::info(cat(dir.string(), ": complete at step ", done, " of ", data.total_steps));
    return ExitCode::kOk;
  }
  log_start(config, parts, data, device, ranks);
  if (first) write_file_atomic(dir / "config.yaml", to_yaml(config, &resolved.origins));

  FrozenHasher packed;
  const auto store = make_store(resolved, parts, device, ranks.topology, packed);
  identity.frozen = frozen_hashes(*store, ranks, packed);
  if (checkpoint) check_frozen(*checkpoint, identity.frozen);
  TrainModule module(config, *parts.model, *store, make_recompute_runner(config.train.recompute),
                     ranks);
  if (checkpoint) restore(*checkpoint, module);
  module.engine().parameters_loaded();

  const int64_t metrics_bytes = checkpoint ? metrics_offset(*checkpoint) : 0;
  together(ranks, "going back to an earlier step", [&] {
    if (!first) return;
    check_metrics_length(dir / "metrics.jsonl", metrics_bytes);
    const std::string moved = set_aside_checkpoints(dir, done, dir / "metrics.jsonl");
    if (!moved.empty()) log::warn(moved);
  });

  // One rank writes what describes the run as a whole.
  std::optional<MetricsFile> metrics;
  std::optional<Progress> progress;
  std::optional<TensorBoard> tensorboard;
  std::vector<Hook*> hooks;
  if (first) {
    hooks = {&metrics.emplace(dir / "metrics.jsonl", metrics_bytes),
             &progress.emplace(config.log.every_steps, ::isatty(STDERR_FILENO) == 1)};
    if (config.log.tensorboard) hooks.push_back(&tensorboard.emplace(dir, done + 1));
    record_start(
        dir, identity,
        {resume.from, checkpoint ? checkpoint->dir().string() : "", done, data.total_steps}, ranks);
  }

  Loader loader(*data.plan, *data.builder, config.data,
                {config.train.micro_batch, ranks.rank(), ranks.size(), done, data.total_steps,
                 leaf_micro_batches(config)});
  const LrSchedule schedule(config.schedule, config.optimizer.lr, data.total_steps);
  StepProfiler profiler(config.log, dir / cat("trace_rank_", ranks.rank(), ".json"),
                        device.device.is_cuda());
  TrainLoop loop;
  loop.profiler = &profiler;
  loop.enter = [&](Phase phase, int64_t step) { watch.enter(phase, step); };
  loop.first_step = done + 1;
  loop.total_steps = data.total_steps;
  loop.checkpoint = config.checkpoint;
  CheckpointSaver saver(dir, *store, train_state(module), ranks,
                        {saves_beside_training(config.checkpoint),
                         config.checkpoint.keep,
                         config.dist.timeout_s.save,
                         {}});
  module.before_update([&] { saver.before_update(); });
  loop.save = [&](int64_t step, const Timer& held) {
    saver.save(capture(step, resolved, identity, metrics ? metrics->offset() : 0), held);
  };
  loop.samples = [&](int64_t step) {
    return sample_names(*data.index, data.plan->batch(step - 1));
  };
  BatchShape largest;
  int64_t micro_batches = 0;
  loop.seen = [&](const std::vector<Batch>& batches) {
    micro_batches = static_cast<int64_t>(batches.size());
    for (const Batch& batch : batches) largest = larger(largest, shape_of(batch));
  };
  const StopSignals signals;  // until the last save is on the disk
  ExitCode outcome = ExitCode::kOk;
  try {
    outcome = fit(module, loader, schedule, hooks, loop);
    saver.finish();
  } catch (...) {
    // The others are told before this rank ends a save that is under way.
    std::rethrow_exception(watch.failed(in_words(std::current_exception())));
  }
  if (device.device.is_cuda() && micro_batches > 0) {
    const double planned =
        planned_peak(config, *parts.model, parts.policies, ranks.topology, largest, micro_batches);
    log::info(compare_with_plan(double(peak_memory_bytes(device.device)), planned));
  }
  if (outcome == ExitCode::kOk && leaves_projector) write_projector(projector, *store, ranks);
  log::info(cat(dir.string(),
                outcome == ExitCode::kOk ? ": complete" : ": stopped by a signal, saved",
                loader.total_skipped() > 0 ? cat("; ", loader.total_skipped(), " samples skipped")
                                           : std::string()));
  return outcome;
}

}  // namespace

ExitCode run_training(const ResolvedConfig& resolved, const ResumeOptions& resume,
                      const Meeting& meeting, int run_number, const EndProcess& end) {
  return run_watched(resolved, meeting, run_number, end, resolved.config.run.dir,
                     [&](const DeviceSetup& device, Ranks& ranks, Watch& watch) {
                       return run_ranks(resolved, resume, device, ranks, watch);
                     });
}

}  // namespace mgm
