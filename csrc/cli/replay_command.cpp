#include "cli/commands.h"
#include "cli/rank_process.h"
#include "train/replay.h"

namespace mgm::cli {
namespace {

struct ReplayArgs {
  std::string run_dir;
  std::vector<std::string> sets;
  ReplayRequest request;
};

void replay(const ReplayArgs& args) {
  std::vector<std::string> sets = args.sets;
  sets.push_back("run.dir=" + args.run_dir);
  const ResolvedConfig config =
      read_run_config((fs::path(args.run_dir) / "config.yaml").string(), sets);
  const Meeting meeting = meet_ranks(config.config.dist.timeout_s.start);
  run_as_rank(meeting, [&](const EndProcess& end) {
    return replay_step(config, args.request, meeting, end);
  });
}

}  // namespace

void add_replay(CLI::App& app) {
  auto args = std::make_shared<ReplayArgs>();
  CLI::App* command =
      app.add_subcommand("replay", "Run one step of a run again, and see where its numbers break");
  command->add_option("run_dir", args->run_dir, "Folder of the run; nothing in it is changed")
      ->required()
      ->check(CLI::ExistingDirectory);
  command->add_option("--step", args->request.step, "As in metrics.jsonl, from 1")->required();
  command->add_flag("--groups", args->request.groups,
                    "Largest value and gradient of every parameter group, not only what breaks");
  command->add_option("--set", args->sets,
                      "Override a value of the run's config.yaml that changes no number, for "
                      "example dist.mode (repeatable)");
  command->footer(
      "Example:\n"
      "  mgm replay runs/stage2 --step 4711\n"
      "  mgm launch --nproc 8 -- replay runs/stage2 --step 4711      # as many ranks as the run "
      "had\n"
      "Goes on from the newest checkpoint before the step, and compares every step with\n"
      "metrics.jsonl: to the bit on the CPU, and on GPUs with train.deterministic.\n"
      "Exit codes: 0 as in metrics.jsonl, 1 other numbers, 6 the step is not finite; else as "
      "train.");
  command->callback([args] { replay(*args); });
}

}  // namespace mgm::cli
