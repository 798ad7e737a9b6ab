#include "train/run_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "config/flatten.h"
#include "config/writer.h"

namespace mgm {
namespace {

// Keys that may differ between a checkpoint and the run that goes on from it: they change no
// number.
bool may_change(const std::string& key) {
  for (const char* prefix :
       {"run.", "log.", "checkpoint.", "data.workers", "data.prefetch", "data.expected_samples",
        "dist.mode", "dist.backend", "dist.shard_size", "dist.offload", "dist.timeout_s."}) {
    if (key.rfind(prefix, 0) == 0) return true;
  }
  return false;
}

std::vector<std::string> differences(const RunConfig& then, const RunConfig& now) {
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

void check_belongs(const TrainCheckpoint& checkpoint, const std::string& source,
                   const ResolvedConfig& resolved, const RunIdentity& identity,
                   bool accept_changes) {
  std::vector<std::string> changes = differences(
      parse_run_config(checkpoint.config_yaml, source + "/config.yaml").config, resolved.config);
  const Json& state = checkpoint.state;
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
  if (state.at("threads").get<int>() != identity.threads ||
      state.at("device").get<std::string>() != identity.device) {
    log::warn(cat("the checkpoint was made on ", state.at("device").get<std::string>(), " with ",
                  state.at("threads").get<int>(), " threads, this is ", identity.device, " with ",
                  identity.threads, ": results will agree, but not to the bit"));
  }
}

}  // namespace

void check_frozen(const TrainCheckpoint& checkpoint,
                  const std::map<std::string, std::string>& now) {
  for (const auto& [group, hash] : checkpoint.frozen) {
    const auto it = now.find(group);
    if (it != now.end() && it->second == hash) continue;
    throw CheckpointError(
        "the frozen weights of ", group, " are not those the checkpoint was made with (hash ", hash,
        ", now ", it == now.end() ? "none" : it->second, "): restore the files that model.* names");
  }
}

std::optional<TrainCheckpoint> choose_checkpoint(const ResolvedConfig& resolved,
                                                 const RunIdentity& identity,
                                                 const ResumeOptions& options) {
  const fs::path run_dir = resolved.config.run.dir;
  fs::path dir;
  if (options.from == "never" || options.from == "auto") {
    const std::vector<int64_t> steps = list_train_checkpoints(run_dir);
    if (options.from == "never" && !steps.empty()) {
      throw CheckpointError(
          run_dir.string(), " holds checkpoints up to step ", steps.back(),
          " and --resume never was given: use another run.dir, or remove the old run");
    }
    if (steps.empty()) return std::nullopt;
    dir = train_checkpoint_dir(run_dir, steps.back());
  } else {
    dir = options.from;
    if (!fs::is_directory(dir))
      throw CheckpointError("--resume ", dir.string(), ": no such checkpoint folder");
  }
  TrainCheckpoint checkpoint = read_train_checkpoint(dir);
  try {
    check_belongs(checkpoint, dir.string(), resolved, identity, options.accept_changes);
  } catch (const Json::exception& e) {
    throw CheckpointError(dir.string(), "/state.json: malformed: ", e.what());
  }
  log::info(cat("resuming from ", dir.string()));
  return checkpoint;
}

int64_t metrics_offset(const TrainCheckpoint& checkpoint) {
  try {
    return checkpoint.state.at("metrics_offset").get<int64_t>();
  } catch (const Json::exception& e) {
    throw CheckpointError("state.json of step ", checkpoint.step, ": malformed: ", e.what());
  }
}

void restore(const TrainCheckpoint& checkpoint, TrainModule& module) {
  const auto tensor = [&](const std::string& name) -> const at::Tensor& {
    const auto it = checkpoint.tensors.find(name);
    if (it == checkpoint.tensors.end()) throw CheckpointError("the checkpoint lacks tensor ", name);
    return it->second;
  };
  size_t used = 0;
  for (AdamW::State& state : module.optimizer().states()) {
    for (const Segment& s : state.group->trained.segments) {
      const std::string& name = s.param->spec.name;
      module.store().assign(name, tensor("master." + name));
      state.exp_avg.narrow(0, s.offset, s.numel).copy_(tensor("exp_avg." + name).view(-1));
      state.exp_avg_sq.narrow(0, s.offset, s.numel).copy_(tensor("exp_avg_sq." + name).view(-1));
      used += 3;
    }
  }
  if (used != checkpoint.tensors.size()) {
    throw CheckpointError("the checkpoint holds ", checkpoint.tensors.size(),
                          " tensors, this run takes ", used);
  }
}

TrainCheckpoint capture(TrainModule& module, int64_t step, const ResolvedConfig& resolved,
                        const RunIdentity& identity, int64_t metrics_offset) {
  TrainCheckpoint out;
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
  for (const AdamW::State& state : module.optimizer().states()) {
    for (const Segment& s : state.group->trained.segments) {
      const std::string& name = s.param->spec.name;
      const auto view = [&](const at::Tensor& flat) {
        return flat.narrow(0, s.offset, s.numel).view(s.param->spec.shape).to(at::kCPU);
      };
      out.tensors["master." + name] = view(state.group->master);
      out.tensors["exp_avg." + name] = view(state.exp_avg);
      out.tensors["exp_avg_sq." + name] = view(state.exp_avg_sq);
    }
  }
  return out;
}

}  // namespace mgm
