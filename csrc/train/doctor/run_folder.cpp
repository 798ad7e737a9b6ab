#include <unistd.h>

#include "checkpoint/train_checkpoint.h"
#include "train/doctor/input_checks.h"
#include "train/run_state.h"

namespace mgm {
namespace {

void check_writable(const fs::path& dir, Findings& out) {
  const fs::path probe = dir / cat(".doctor_probe_", ::getpid());
  try {
    write_file_atomic(probe, "mgm doctor\n");
    out.push_back(passed("disk", cat("run.dir ", dir.string(), " can be written")));
  } catch (const std::exception& e) {
    out.push_back(failed("disk", ExitCode::kInternal, cat("run.dir: ", e.what()),
                         "correct its owner or mode, or choose another run.dir"));
  }
  std::error_code ignored;
  fs::remove(probe, ignored);
}

void check_newest(const ResolvedConfig& resolved, const std::string& data_hash,
                  const std::string& tokenizer_hash, Findings& out) {
  const fs::path run_dir = resolved.config.run.dir;
  const std::vector<int64_t> steps = list_train_checkpoints(run_dir);
  if (steps.empty()) return;
  const fs::path dir = train_checkpoint_dir(run_dir, steps.back());
  const TrainCheckpoint newest(dir);
  for (const auto& [file, entry] : newest.manifest().files) {
    check_file_size(dir, newest.manifest(), file);
  }
  std::vector<std::string> changes = config_changes(
      parse_run_config(newest.config_yaml(), (dir / kConfigFile).string()).config, resolved.config);
  const auto compare = [&](const char* key, const std::string& now, const char* what) {
    if (!now.empty() && newest.state().value(key, now) != now)
      changes.push_back(cat(what, " have changed"));
  };
  compare("data_hash", data_hash, "the annotation files");
  compare("tokenizer_hash", tokenizer_hash, "the tokenizer's files");
  if (changes.empty()) {
    out.push_back(passed("checkpoint", cat("the run goes on from ", dir.string())));
    return;
  }
  out.push_back(
      failed("checkpoint", ExitCode::kCheckpoint,
             cat(dir.string(), " was made with another configuration:\n", join(changes, "\n")),
             "choose another run.dir, set the values back, or train with "
             "--accept-changes"));
}

}  // namespace

Findings check_run_folder(const ResolvedConfig& resolved, bool first_rank,
                          const std::string& data_hash, const std::string& tokenizer_hash) {
  Findings out;
  const fs::path dir = resolved.config.run.dir;
  check_writable(dir, out);
  if (!first_rank) return out;
  const fs::path lock = dir / ".lock";
  if (fs::exists(lock)) {
    try {
      const FileLock mine(lock, cat("run.dir ", dir.string()));
    } catch (const std::exception& e) {
      out.push_back(failed("disk", e));
    }
  }
  try {
    check_newest(resolved, data_hash, tokenizer_hash, out);
  } catch (const std::exception& e) {
    out.push_back(failed("checkpoint", ExitCode::kCheckpoint, e.what(),
                         "mgm train would refuse it; remove it, or choose another run.dir"));
  }
  return out;
}

}  // namespace mgm
