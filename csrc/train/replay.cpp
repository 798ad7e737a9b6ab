#include "train/replay.h"

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <map>

#include "base/json.h"
#include "base/json_problem.h"
#include "base/log.h"
#include "checkpoint/checkpoint_folder.h"
#include "dist/agreement.h"
#include "dist/frozen_hash.h"
#include "train/checking_runner.h"
#include "train/doctor/start_check.h"
#include "train/rank_setup.h"
#include "train/recompute.h"
#include "train/run_state.h"

namespace mgm {
namespace {

struct Numbers {
  double loss = 0, grad_norm = 0;
  int64_t num_targets = 0;

  bool finite() const {
    return (num_targets == 0 || std::isfinite(loss)) && std::isfinite(grad_norm);
  }
};

// metrics.jsonl by step; null is a number that was not finite, or the loss of a step without
// targets.
std::map<int64_t, Numbers> read_metrics(const fs::path& path) {
  std::map<int64_t, Numbers> out;
  std::ifstream file(path);
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    try {
      const Json json = parse_json(line, cat(path.string(), ":", number));
      const auto value = [&](const char* key) {
        return json.at(key).is_null() ? std::nan("") : json.at(key).get<double>();
      };
      out[json.at("step").get<int64_t>()] = {value("loss"), value("grad_norm"),
                                             json.at("num_targets").get<int64_t>()};
    } catch (const Json::exception& e) {
      throw DataError(path.string(), ":", number, ": not a line of metrics: ", json_problem(e));
    }
  }
  return out;
}

bool same(double a, double b) { return a == b || (!std::isfinite(a) && !std::isfinite(b)); }

// "" where they are equal to the bit.
std::string difference(const Numbers& now, const Numbers& then) {
  std::string out;
  const auto compare = [&](const char* name, double a, double b) {
    if (same(a, b)) return;
    out += cat(out.empty() ? "" : ", ", name, " ", strf("%.17g", a), " here, ", strf("%.17g", b),
               " in metrics.jsonl (relative ", strf("%.1e", std::abs(a - b) / std::abs(b)), ")");
  };
  compare("loss", now.loss, then.loss);
  compare("grad_norm", now.grad_norm, then.grad_norm);
  compare("num_targets", double(now.num_targets), double(then.num_targets));
  return out;
}

// The newest checkpoint before `step`; nothing where the run's beginning is nearer than any.
std::optional<TrainCheckpoint> checkpoint_before(const ResolvedConfig& resolved,
                                                 const RunIdentity& identity, int64_t step,
                                                 Ranks& ranks) {
  int64_t newest = 0;
  for (const int64_t s : list_train_checkpoints(resolved.config.run.dir)) {
    if (s < step) newest = s;
  }
  // A live run may be pruning: what the first rank sees counts.
  newest = std::stoll(gather_texts(ranks, cat(newest), "checkpoint to replay from").front());
  if (newest == 0) return std::nullopt;
  ResumeOptions from;
  from.from = train_checkpoint_dir(resolved.config.run.dir, newest).string();
  return choose_checkpoint(resolved, identity, from, ranks);
}

std::string describe(const ValueCheck& check) {
  std::string out = cat(check.backward ? "gradient at the result of " : "result of ", check.group,
                        ", micro-batch ", check.micro_batch + 1, ": ");
  if (check.not_finite == 0) return out + cat("finite, largest ", strf("%.3e", check.largest));
  out += cat(with_commas(check.not_finite), " of ", with_commas(check.numel),
             " values are not finite");
  if (check.backward) return out;
  return out + (check.bad_inputs == 0
                    ? std::string("; its inputs are all finite")
                    : cat("; so are ", with_commas(check.bad_inputs), " of its inputs"));
}

// Of one rank: samples, then what broke first, forward and backward, then gradients of weights.
std::string report_rank(const Ranks& ranks, const StepBatches& batches,
                        const std::vector<ValueCheck>& checks,
                        const std::vector<ValueCheck>& gradients, bool groups) {
  const std::string who = ranks.size() > 1 ? cat("rank ", ranks.rank(), ", ") : "";
  std::string out;
  for (size_t i = 0; i < batches.micro.size(); ++i) {
    const Batch& batch = batches.micro[i];
    std::vector<std::string> ids;
    for (const SampleInfo& sample : batch.samples) ids.push_back(sample.id);
    out += cat(who, "micro-batch ", i + 1, ": ", batch.seq.total(), " tokens, ", batch.num_images(),
               " pictures, ", batch.num_targets(), " targets, samples ", join(ids, ", "), "\n");
  }
  const auto first_bad = [&](const std::vector<ValueCheck>& all, bool backward) {
    const ValueCheck* before = nullptr;  // in the order things run
    for (const ValueCheck& check : all) {
      if (check.backward != backward) continue;
      if (check.not_finite == 0) {
        before = &check;
        continue;
      }
      out += cat(who, "first not finite: ", describe(check),
                 backward && before ? cat("; at the result of ", before->group, ", micro-batch ",
                                          before->micro_batch + 1, ", it still was")
                                    : "",
                 "\n");
      return;
    }
  };
  first_bad(checks, false);
  first_bad(checks, true);
  int64_t broken = 0;
  for (const ValueCheck& check : gradients) {
    if (check.not_finite == 0) continue;
    if (broken++ == 0) {
      out +=
          cat(who, "gradient of the weights of ", check.group, ": ", with_commas(check.not_finite),
              " of ", with_commas(check.numel), " values of this rank are not finite\n");
    }
  }
  if (broken > 1) out += cat(who, "and those of ", broken - 1, " groups more\n");
  if (!groups) return out;
  for (const ValueCheck& check : checks) out += cat(who, describe(check), "\n");
  for (const ValueCheck& check : gradients) {
    out += cat(who, "gradient of the weights of ", check.group, ": largest ",
               strf("%.3e", check.largest), "\n");
  }
  return out;
}

class Replay {
 public:
  Replay(const ResolvedConfig& resolved, const ReplayRequest& request, const DeviceSetup& device,
         Ranks& ranks, Watch& watch)
      : resolved_(resolved),
        config_(resolved.config),
        request_(request),
        device_(device),
        ranks_(ranks),
        watch_(watch),
        metrics_(read_metrics(fs::path(config_.run.dir) / "metrics.jsonl")) {}

  ExitCode run() {
    check_ranks_agree(ranks_, config_, device_);
    join(ranks_, config_, device_);
    install_recompute_engine();
    const ModelParts parts = describe_model(resolved_);
    const DataParts data = open_data(resolved_);
    log::set_quiet(!ranks_.is_first());
    if (request_.step < 1 || request_.step > data.total_steps) {
      throw ConfigError("--step ", request_.step, ": the run has steps 1 to ", data.total_steps);
    }
    RunIdentity identity = identify(data, device_);
    check_inputs_agree(ranks_, config_, identity, parts, device_, FolderUse::kRead);
    const auto checkpoint = checkpoint_before(resolved_, identity, request_.step, ranks_);
    const int64_t done = checkpoint ? checkpoint->step() : 0;
    log::info(cat("step ", request_.step, " of ", data.total_steps, ": running ",
                  request_.step - done, " steps again from ",
                  checkpoint ? checkpoint->dir().string() : "the run's first weights"));

    FrozenHasher packed;
    const auto store = make_store(resolved_, parts, device_, ranks_.topology, packed);
    if (checkpoint) check_frozen(*checkpoint, frozen_hashes(*store, ranks_, packed));
    auto checking =
        std::make_unique<CheckingRunner>(make_recompute_runner(config_.train.recompute));
    CheckingRunner& runner = *checking;
    TrainModule module(config_, *parts.model, *store, std::move(checking), ranks_);
    if (checkpoint) restore(*checkpoint, module);
    module.engine().parameters_loaded();

    Loader loader(*data.plan, *data.builder, config_.data,
                  {config_.train.micro_batch, ranks_.rank(), ranks_.size(), done, request_.step,
                   leaf_micro_batches(config_)});
    const LrSchedule schedule(config_.schedule, config_.optimizer.lr, data.total_steps);
    for (int64_t step = done + 1; step < request_.step; ++step) {
      const StepBatches batches = next(loader, step);
      const StepAgreement agreed = agree(ranks_, config_, batches.micro);
      compare(step, numbers(module.step(batches.micro, agreed, step, schedule.at(step)), agreed));
    }
    return last_step(module, runner, next(loader, request_.step), schedule.at(request_.step));
  }

 private:
  StepBatches next(Loader& loader, int64_t step) {
    watch_.enter(Phase::kStep, step);
    std::optional<StepBatches> batches = loader.next();
    MGM_CHECK(batches.has_value(), "the loader ended before step ", step);
    return std::move(*batches);
  }

  static Numbers numbers(const StepResult& result, const StepAgreement& agreed) {
    const double loss = agreed.targets > 0 ? result.loss.item<double>() : std::nan("");
    return {loss, result.grad_norm.item<double>(), agreed.targets};
  }

  void compare(int64_t step, const Numbers& now) {
    const auto then = metrics_.find(step);
    if (then == metrics_.end()) {
      log::info(cat("step ", step, ": metrics.jsonl has no such line"));
      return;
    }
    const std::string what = difference(now, then->second);
    if (what.empty()) {
      ++equal_;
    } else {
      ++different_;
      log::warn(cat("step ", step, ": ", what));
    }
  }

  ExitCode last_step(TrainModule& module, CheckingRunner& runner, const StepBatches& batches,
                     double lr) {
    const StepAgreement agreed = agree(ranks_, config_, batches.micro);
    std::vector<ValueCheck> checks, gradients;
    runner.watch(&checks);
    StepResult result = module.forward_backward(batches.micro, agreed, request_.step);
    for (const ParamGroup& group : module.store().groups()) {
      if (group.grad.defined()) gradients.push_back(check_values(group.name, {group.grad}));
    }
    result.grad_norm = module.optimizer().step(lr, request_.step);
    const Numbers now = numbers(result, agreed);
    compare(request_.step, now);

    const std::string mine = report_rank(ranks_, batches, checks, gradients, request_.groups);
    std::string all;
    for (const std::string& text : gather_texts(ranks_, mine, "report of a replayed step")) {
      all += text;
    }
    log::info(cat("step ", request_.step, ": loss ", agreed.targets > 0 ? cat(now.loss) : "-",
                  ", grad_norm ", now.grad_norm, ", lr ", lr, ", ", with_commas(now.num_targets),
                  " targets\n", all));
    log::info(cat(equal_, " steps equal to metrics.jsonl to the bit, ", different_, " not"));
    if (!now.finite()) return ExitCode::kNonFinite;
    return different_ == 0 ? ExitCode::kOk : ExitCode::kInternal;
  }

  const ResolvedConfig& resolved_;
  const RunConfig& config_;
  const ReplayRequest& request_;
  const DeviceSetup& device_;
  Ranks& ranks_;
  Watch& watch_;
  const std::map<int64_t, Numbers> metrics_;
  int64_t equal_ = 0, different_ = 0;
};

}  // namespace

ExitCode replay_step(const ResolvedConfig& resolved, const ReplayRequest& request,
                     const Meeting& meeting, const EndProcess& end) {
  return run_watched(resolved, meeting, 0, end, /*records=*/"",
                     [&](const DeviceSetup& device, Ranks& ranks, Watch& watch) {
                       return Replay(resolved, request, device, ranks, watch).run();
                     });
}

}  // namespace mgm
