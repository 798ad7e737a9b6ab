#include "train/run_state.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/json_problem.h"
#include "base/log.h"
#include "checkpoint/train_state.h"
#include "config/flatten.h"
#include "config/writer.h"
#include "dist/agreement.h"
#include "train/doctor/identity.h"

namespace mgm {
namespace {

// Keys that may differ between a checkpoint and the run that goes on from it: they change no
// number.
bool may_change(const std::string& key) {
  for (const char* prefix :
       {"run.", "log.", "checkpoint.", "data.workers", "data.prefetch", "data.expected_samples",
        "dist.mode", "dist.backend", "dist.shard_size", "dist.expert_parallel", "dist.offload",
        "dist.timeout_s."}) {
    if (key.rfind(prefix, 0) == 0) return true;
  }
  return false;
}

// "cuda:3" -> "cuda".
std::string kind_of(const std::string& device) { return device.substr(0, device.find(':')); }

void check_belongs(const TrainCheckpoint& checkpoint, const std::string& source,
                   const ResolvedConfig& resolved, const RunIdentity& identity,
                   bool accept_changes) {
  std::vector<std::string> changes = config_changes(
      parse_run_config(checkpoint.config_yaml(), source + "/config.yaml").config, resolved.config);
  const Json& state = checkpoint.state();
  const auto compare = [&](const char* key, const std::string& now, const char* what) {
    if (state.at(key).get<std::string>() != now) changes.push_back(cat(what, " have changed"));
  };
  compare("data_hash", identity.data_hash, "the annotation files");
  compare("tokenizer_hash", identity.tokenizer_hash, "the tokenizer's files");
  const auto dtype = state.at("dtype").get<std::string>();
  if (dtype != identity.dtype) {
    throw CheckpointError(source, " is of a run in ", dtype, ", this run is in ", identity.dtype,
                          ": set train.dtype or train.device as they were");
  }
  if (!changes.empty()) {
    const std::string list = join(changes, "\n  ");
    if (!accept_changes) {
      throw CheckpointError(source, " was made with another configuration:\n  ", list,
                            "\nStart in another run.dir, set the values back, or accept them with "
                            "--accept-changes (the run is then not the one that was interrupted).");
    }
    log::warn(cat("going on from ", source, " with changes:\n  ", list));
  }
  const auto threads = state.at("threads").get<int>();
  const auto device = state.at("device").get<std::string>();
  if (threads != identity.threads || kind_of(device) != kind_of(identity.device)) {
    log::warn(cat("the checkpoint was made on ", device, " with ", threads, " threads, this is ",
                  identity.device, " with ", identity.threads,
                  ": results will agree, but not to the bit"));
  }
}

// How many ranks, and which part each has, is free.
void log_resume(const TrainCheckpoint& checkpoint, const Topology& topology) {
  const StateLayout& then = checkpoint.layout();
  log::info(cat("resuming from ", checkpoint.dir().string()));
  if (then.world == topology.world && then.shard_size == topology.shard_size &&
      then.mode == name_of(topology.mode)) {
    return;
  }
  log::info(cat("written as ", then.mode, " by ", then.world, " ranks, read as ",
                name_of(topology.mode), " by ", topology.world));
}

// The folder `options` ask for; "" for a fresh start.
std::string choose_folder(const fs::path& run_dir, const ResumeOptions& options) {
  if (options.from != "never" && options.from != "auto") {
    if (!fs::is_directory(options.from))
      throw CheckpointError("--resume ", options.from, ": no such checkpoint folder");
    if (is_set_aside(options.from)) {
      throw CheckpointError("--resume ", options.from,
                            ": was set aside when the run went back, and the lines of its "
                            "metrics.jsonl with it: move both back first (docs/checkpoints.md)");
    }
    return options.from;
  }
  const std::vector<int64_t> steps = list_train_checkpoints(run_dir);
  if (steps.empty()) return "";
  if (options.from == "never") {
    throw CheckpointError(
        run_dir.string(), " holds checkpoints up to step ", steps.back(),
        " and --resume never was given: use another run.dir, or remove the old run");
  }
  return train_checkpoint_dir(run_dir, steps.back()).string();
}

// The run's checkpoint before the one in `folder`; "" if there is none or `folder` is not the
// run's.
std::string before(const fs::path& run_dir, const fs::path& folder) {
  const int64_t step = checkpoint_step(folder.filename().string());
  std::string out;
  for (const int64_t at : list_train_checkpoints(run_dir)) {
    const fs::path here = train_checkpoint_dir(run_dir, at);
    if (at == step) return fs::weakly_canonical(here) == fs::weakly_canonical(folder) ? out : "";
    out = here.string();
  }
  return "";
}

// Where a launcher repeats a start nobody may be there to say what to do with a damaged checkpoint:
// an older one is gone on from, and the damaged one set aside as always when a run goes back.
TrainCheckpoint open_newest_whole(std::string& folder, const fs::path& run_dir, Ranks& ranks) {
  for (;;) {
    try {
      return open_train_checkpoint(folder, ranks);
    } catch (const CheckpointError& e) {
      const bool repeated = ranks.env.restart > 0 || ranks.env.requeues > 0;
      std::string older;
      together(ranks, "list of checkpoints", [&] {
        if (ranks.is_first() && repeated) older = before(run_dir, folder);
      });
      older = gather_texts(ranks, older, "choice of an older checkpoint").front();
      if (older.empty()) throw;
      if (ranks.is_first()) log::warn(cat(e.what(), "\ngoing on from ", older, " instead"));
      folder = older;
    }
  }
}

}  // namespace

RunIdentity identify(const DataParts& data, const DeviceSetup& device) {
  RunIdentity identity;
  identity.data_hash = data_hash(*data.index);
  identity.tokenizer_hash = tokenizer_hash(*data.tokenizer);
  identity.device = device.device.str();
  identity.dtype = at::toString(device.dtype);
  identity.threads = at::get_num_threads();
  return identity;
}

std::vector<std::string> config_changes(const RunConfig& then, const RunConfig& now) {
  std::map<std::string, std::string> before, after;
  for (const FlatField& f : flatten(then)) before[f.key] = f.value;
  for (const FlatField& f : flatten(now)) after[f.key] = f.value;
  std::set<std::string> keys;
  for (const auto& [key, value] : before) keys.insert(key);
  for (const auto& [key, value] : after) keys.insert(key);
  std::vector<std::string> out;
  for (const std::string& key : keys) {
    const auto a = before.find(key), b = after.find(key);
    const std::string old_value = a == before.end() ? "(absent)" : a->second;
    const std::string new_value = b == after.end() ? "(absent)" : b->second;
    if (old_value != new_value && !may_change(key))
      out.push_back(cat(key, ": ", old_value, " -> ", new_value));
  }
  return out;
}

void check_frozen(const TrainCheckpoint& checkpoint,
                  const std::map<std::string, std::string>& now) {
  for (const auto& [group, hash] : checkpoint.manifest().frozen) {
    const auto it = now.find(group);
    if (it != now.end() && it->second == hash) continue;
    throw CheckpointError(
        "the frozen weights of ", group, " are not those the checkpoint was made with (hash ", hash,
        ", now ", it == now.end() ? "none" : it->second, "): restore the files that model.* names");
  }
}

std::optional<TrainCheckpoint> choose_checkpoint(const ResolvedConfig& resolved,
                                                 const RunIdentity& identity,
                                                 const ResumeOptions& options, Ranks& ranks) {
  std::string folder;
  together(ranks, "choice of a checkpoint", [&] {
    if (ranks.is_first()) folder = choose_folder(resolved.config.run.dir, options);
  });
  folder = gather_texts(ranks, folder, "choice of a checkpoint").front();
  if (folder.empty()) return std::nullopt;
  TrainCheckpoint checkpoint = open_newest_whole(folder, resolved.config.run.dir, ranks);
  together(ranks, "checkpoint belongs to the run", [&] {
    try {
      check_belongs(checkpoint, folder, resolved, identity, options.accept_changes);
    } catch (const Json::exception& e) {
      throw CheckpointError(folder, "/state.json: malformed: ", json_problem(e));
    }
  });
  log_resume(checkpoint, ranks.topology);
  return checkpoint;
}

int64_t metrics_offset(const TrainCheckpoint& checkpoint) {
  try {
    return checkpoint.state().at("metrics_offset").get<int64_t>();
  } catch (const Json::exception& e) {
    throw CheckpointError("state.json of step ", checkpoint.step(),
                          ": malformed: ", json_problem(e));
  }
}

void restore(const TrainCheckpoint& checkpoint, TrainModule& module) {
  restore_train_state(checkpoint, module.store(), train_state(module));
}

std::vector<GroupState> train_state(TrainModule& module) {
  std::vector<GroupState> out;
  for (const AdamW::State& state : module.optimizer().states())
    out.push_back({state.group, state.exp_avg, state.exp_avg_sq});
  return out;
}

CheckpointContent capture(int64_t step, const ResolvedConfig& resolved, const RunIdentity& identity,
                          int64_t metrics_offset) {
  CheckpointContent out;
  out.step = step;
  out.config_yaml = to_yaml(resolved.config, &resolved.origins);
  out.state = {{"step", step},
               {"metrics_offset", metrics_offset},
               {"data_hash", identity.data_hash},
               {"tokenizer_hash", identity.tokenizer_hash},
               {"device", identity.device},
               {"dtype", identity.dtype},
               {"threads", identity.threads}};
  out.frozen = identity.frozen;
  return out;
}

}  // namespace mgm
