#include "train/run_starts.h"

#include <torch/headeronly/version.h>
#include <unistd.h>

#include <chrono>
#include <ctime>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/strings.h"
#include "base/version.h"
#include "checkpoint/checkpoint_folder.h"

namespace mgm {
namespace {

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm tm{};
  ::gmtime_r(&now, &tm);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
  return text;
}

std::vector<std::string> command_line() {
  std::vector<std::string> words = split(read_file("/proc/self/cmdline"), '\0');
  if (!words.empty()) words.pop_back();  // every word ends in a zero byte
  return words;
}

// [] where there is no such file, or none that this program wrote.
OrderedJson read_starts(const fs::path& run_dir) {
  const fs::path path = run_dir / "run.json";
  if (!fs::exists(path)) return OrderedJson::array();
  const OrderedJson before =
      OrderedJson::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!before.is_object() || !before.contains("starts") || !before["starts"].is_array()) {
    return OrderedJson::array();
  }
  return before["starts"];
}

bool same_place(const fs::path& a, const fs::path& b) {
  return fs::weakly_canonical(a) == fs::weakly_canonical(b);
}

// Numbers of the stages that `belongs` is true of.
template <typename Belongs>
std::vector<size_t> stages_where(const std::vector<ResolvedConfig>& stages,
                                 const Belongs& belongs) {
  std::vector<size_t> out;
  for (size_t i = 0; i < stages.size(); ++i) {
    if (belongs(stages[i].config)) out.push_back(i);
  }
  return out;
}

// The stages a checkpoint may be of; several where it lies elsewhere and fits them alike.
std::vector<size_t> stages_of(const fs::path& folder, const std::vector<ResolvedConfig>& stages) {
  const fs::path place = fs::weakly_canonical(folder).parent_path();
  std::vector<size_t> out = stages_where(stages, [&](const RunConfig& stage) {
    return same_place(fs::path(stage.run.dir) / "checkpoints", place);
  });
  const fs::path written = folder / "config.yaml";
  if (!out.empty() || !fs::exists(written)) return out;
  const RunConfig config = parse_run_config(read_file(written), written.string()).config;
  out = stages_where(
      stages, [&](const RunConfig& stage) { return same_place(stage.run.dir, config.run.dir); });
  if (!out.empty()) return out;
  return stages_where(
      stages, [&](const RunConfig& stage) { return config_changes(config, stage).empty(); });
}

// torchrun's id is "none" where it is given no --rdzv-id: the count has to have grown, too.
bool is_earlier_attempt(const OrderedJson& start, const LaunchEnv& env) {
  const auto said = [&](const char* key, const std::string& id, const char* count, int now) {
    return !id.empty() && start.at(key).get<std::string>() == id &&
           start.at(count).get<int>() < now;
  };
  return said("job", env.job, "restart", env.restart) ||
         said("allocation", env.allocation, "requeues", env.requeues);
}

}  // namespace

void record_start(const fs::path& run_dir, const RunIdentity& identity, const RunStart& start,
                  const Ranks& ranks) {
  OrderedJson starts = read_starts(run_dir);
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  starts.push_back(OrderedJson{{"time", utc_now()},
                               {"host", host},
                               {"pid", ::getpid()},
                               {"argv", command_line()},
                               {"mgm_version", version()},
                               {"git_commit", git_commit()},
                               {"torch_version", TORCH_VERSION},
                               {"device", identity.device},
                               {"threads", identity.threads},
                               {"ranks", ranks.size()},
                               {"launcher", ranks.env.launcher},
                               {"job", ranks.env.job},
                               {"restart", ranks.env.restart},
                               {"allocation", ranks.env.allocation},
                               {"requeues", ranks.env.requeues},
                               {"data_hash", identity.data_hash},
                               {"tokenizer_hash", identity.tokenizer_hash},
                               {"resume", start.resume},
                               {"from", start.from},
                               {"from_step", start.from_step},
                               {"total_steps", start.total_steps}});
  write_file_atomic(run_dir / "run.json", OrderedJson{{"starts", starts}}.dump(2) + "\n");
}

std::vector<ResumeOptions> resume_of_stages(const std::vector<ResolvedConfig>& stages,
                                            const ResumeOptions& asked) {
  std::vector<ResumeOptions> out(stages.size(), asked);
  if (stages.size() == 1 || asked.from == "auto" || asked.from == "never") return out;
  if (!fs::is_directory(asked.from)) {
    throw CheckpointError("--resume ", asked.from, ": no such checkpoint folder");
  }
  const std::vector<size_t> fitting = stages_of(asked.from, stages);
  if (fitting.size() != 1) {
    std::string list;
    for (const ResolvedConfig& stage : stages) list += "\n  " + stage.config.run.dir;
    throw CheckpointError("--resume ", asked.from, ": of ",
                          fitting.empty() ? "none of the stages" : "more than one stage",
                          ", by its place and its config; their folders are", list,
                          "\nTrain the stage it is meant for by itself.");
  }
  for (size_t i = 0; i < out.size(); ++i) {
    if (i != fitting.front()) out[i].from = "auto";
  }
  return out;
}

ResumeOptions after_restart(const fs::path& run_dir, const ResumeOptions& asked,
                            const LaunchEnv& env) {
  if (asked.from == "auto" || (env.restart == 0 && env.requeues == 0)) return asked;
  const OrderedJson starts = read_starts(run_dir);
  if (starts.empty()) return asked;
  ResumeOptions out = asked;
  try {
    const OrderedJson& last = starts.back();
    if (last.at("resume") != asked.from || !is_earlier_attempt(last, env)) return asked;
    const std::vector<int64_t> steps = list_train_checkpoints(run_dir);
    if (!steps.empty() && steps.back() > last.at("from_step").get<int64_t>()) {
      out.from = train_checkpoint_dir(run_dir, steps.back()).string();
    } else {
      out.from = last.at("from").get<std::string>();
      if (out.from.empty()) out.from = asked.from;  // never, and nothing is there
    }
  } catch (const Json::exception&) {
    return asked;  // of another version of this program
  }
  if (out.from != asked.from) {
    log::info(cat("started again: going on from what this launch has written (", out.from,
                  "), not with --resume ", asked.from));
  }
  return out;
}

}  // namespace mgm
