// mgm checkpoint ls|verify|diff: what the training checkpoints of a run are and hold.
#include <iostream>

#include "base/error.h"
#include "base/timer.h"
#include "checkpoint/compare.h"
#include "cli/commands.h"
#include "config/writer.h"

namespace mgm::cli {
namespace {

struct CheckpointArgs {
  std::string a, b;
  bool all = false;
};

constexpr const char* kRow = "%10s  %10s  %5s  %-9s  %-20s  %s\n";

// The folder's sizes alone: quick, whatever its size.
void print_row(const fs::path& run_dir, int64_t step) {
  const fs::path dir = train_checkpoint_dir(run_dir, step);
  const std::string number = std::to_string(step);
  try {
    const Manifest manifest = read_manifest(dir);
    std::string looks = "sizes ok";
    try {
      for (const auto& [file, entry] : manifest.files) check_file_size(dir, manifest, file);
    } catch (const CheckpointError& e) {
      looks = cat("damaged: ", e.what());
    }
    std::cout << strf(kRow, number.c_str(),
                      human_bytes(static_cast<double>(manifest.total_bytes())).c_str(),
                      std::to_string(manifest.world).c_str(), manifest.mode.c_str(),
                      manifest.time.c_str(), looks.c_str());
  } catch (const CheckpointError& e) {
    std::cout << strf(kRow, number.c_str(), "", "", "", "", cat("damaged: ", e.what()).c_str());
  }
}

void list(const CheckpointArgs& args) {
  const std::vector<int64_t> steps = list_train_checkpoints(args.a);
  if (steps.empty()) {
    throw CheckpointError(args.a, ": is no run folder with checkpoints (no checkpoints/step_N)");
  }
  std::cout << strf(kRow, "step", "size", "ranks", "mode", "written (UTC)", "looks");
  for (const int64_t step : steps) print_row(args.a, step);
  std::vector<std::string> aside;
  for (const int64_t step : list_set_aside(args.a)) aside.push_back(std::to_string(step));
  if (aside.empty()) return;
  std::cout << "and " << aside.size() << " in " << set_aside_dir(args.a).string()
            << ", set aside when the run went back: step " << join(aside, ", ") << "\n";
}

void verify(const CheckpointArgs& args) {
  std::vector<fs::path> dirs;
  for (const int64_t step : list_train_checkpoints(args.a))
    dirs.push_back(train_checkpoint_dir(args.a, step));
  if (dirs.empty()) dirs.push_back(args.a);
  Ranks ranks = local_ranks({});
  std::string first_problem;
  for (const fs::path& dir : dirs) {
    const Timer timer;
    try {
      verify_train_checkpoint(dir, ranks);
      const Manifest manifest = read_manifest(dir);
      std::cout << dir.string() << ": whole: " << manifest.files.size() << " files, "
                << human_bytes(static_cast<double>(manifest.total_bytes())) << ", read in "
                << human_seconds(timer.seconds()) << "\n";
    } catch (const CheckpointError& e) {
      if (dirs.size() > 1) std::cout << dir.string() << ": damaged: " << e.what() << "\n";
      if (first_problem.empty()) first_problem = e.what();
    }
  }
  if (!first_problem.empty()) throw CheckpointError(first_problem);
}

std::string text_of(const TensorDifference& d) {
  return d.equal ? std::string("equal")
                 : strf("max abs %.3g, relative L2 %.3g", d.max_abs, d.relative_l2);
}

void print_names(const std::vector<std::string>& names, const std::string& what) {
  for (const std::string& name : names) std::cout << name << ": " << what << "\n";
}

RunConfig config_of(const TrainCheckpoint& checkpoint) {
  return parse_run_config(checkpoint.config_yaml(), (checkpoint.dir() / kConfigFile).string())
      .config;
}

// Returns whether there is any difference.
bool print_differences(const TrainCheckpoint& a, const TrainCheckpoint& b, bool all) {
  for (const TrainCheckpoint* c : {&a, &b}) {
    std::cout << (c == &a ? "A: " : "B: ") << c->dir().string() << ", step " << c->step() << ", "
              << c->manifest().mode << " by " << c->manifest().world
              << (c->manifest().world == 1 ? " rank\n" : " ranks\n");
  }
  const std::vector<ConfigDifference> keys = diff(config_of(a), config_of(b));
  for (const ConfigDifference& d : keys) {
    std::cout << "config " << d.key << ": " << d.a.value_or("(absent)") << " -> "
              << d.b.value_or("(absent)") << "\n";
  }
  const CheckpointDifference found = compare_checkpoints(a, b);
  constexpr size_t kShown = 20;
  for (size_t i = 0; i < found.parameters.size() && (all || i < kShown); ++i) {
    const ParameterDifference& p = found.parameters[i];
    std::cout << p.name << "\n";
    for (size_t k = 0; k < p.of.size(); ++k)
      std::cout << strf("  %-11s ", kStateKinds[k]) << text_of(p.of[k]) << "\n";
  }
  if (!all && found.parameters.size() > kShown) {
    std::cout << "... and " << found.parameters.size() - kShown
              << " more parameters that differ (--all prints them)\n";
  }
  print_names(found.only_a, "only in A, or of another shape");
  print_names(found.only_b, "only in B, or of another shape");
  print_names(found.frozen, "other frozen weights");
  std::cout << found.equal_parameters << " parameters equal to the bit, " << found.parameters.size()
            << " differ; " << keys.size() << " config keys differ\n";
  const bool equal = found.equal() && a.step() == b.step();
  std::cout << (equal ? "equal" : "different") << "\n";
  return !equal;
}

void difference(const CheckpointArgs& args) {
  Ranks ranks = local_ranks({});
  const TrainCheckpoint a = open_train_checkpoint(find_train_checkpoint(args.a), ranks);
  const TrainCheckpoint b = open_train_checkpoint(find_train_checkpoint(args.b), ranks);
  if (print_differences(a, b, args.all)) throw Exit{static_cast<int>(ExitCode::kCheckpoint)};
}

}  // namespace

void add_checkpoint(CLI::App& app) {
  auto args = std::make_shared<CheckpointArgs>();
  CLI::App* command =
      app.add_subcommand("checkpoint", "List, verify and compare training checkpoints");
  command->require_subcommand(1);
  command->footer("Example: mgm checkpoint ls runs/tiny/stage2");

  CLI::App* ls = command->add_subcommand("ls", "The checkpoints of a run, oldest first");
  ls->add_option("RUN_DIR", args->a, "Run folder")->required();
  ls->footer(
      "\"sizes ok\": every file of the manifest is there with its size; what is in it has not "
      "been\n"
      "read: `mgm checkpoint verify` compares every hash.\n"
      "Below the table: what was set aside when the run went back to an older one.\n"
      "Example: mgm checkpoint ls runs/tiny/stage2");
  ls->callback([args] { list(*args); });

  CLI::App* check = command->add_subcommand("verify", "Compare every size and hash");
  check->add_option("DIR", args->a, "Checkpoint folder, or a run folder: all of its checkpoints")
      ->required();
  check->footer(
      "Exit code 4 names the first bad file.\n"
      "Example: mgm checkpoint verify runs/tiny/stage2/checkpoints/step_8");
  check->callback([args] { verify(*args); });

  CLI::App* two = command->add_subcommand(
      "diff", "Compare weights, moments and configs, whatever the ranks that wrote them");
  two->add_option("A", args->a, "Checkpoint folder, or a run folder: its newest checkpoint")
      ->required();
  two->add_option("B", args->b, "Another one")->required();
  two->add_flag("--all", args->all, "Print every parameter that differs, not the first 20");
  two->footer(
      "Exit code 0: step, weights, moments and hashes of frozen weights are equal to the bit\n"
      "(configs may differ); 4: something differs, or a checkpoint is damaged (then with an\n"
      "error message).\n"
      "Example: mgm checkpoint diff runs/a/checkpoints/step_8 runs/b/checkpoints/step_8");
  two->callback([args] { difference(*args); });
}

}  // namespace mgm::cli
