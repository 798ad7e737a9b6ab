// mgm train: one run, or the stages of a file one after another.

#include <iostream>

#include "assemble/backbone_config.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/plan_options.h"
#include "cli/rank_process.h"
#include "train/build.h"
#include "train/run.h"
#include "train/run_starts.h"

namespace mgm::cli {
namespace {

struct TrainArgs {
  std::string config;
  std::vector<std::string> sets;
  ResumeOptions resume;
  PlanArgs plan;
};

void train(const TrainArgs& args) {
  const std::vector<ResolvedConfig> stages = read_training_configs(args.config, args.sets);
  const std::vector<ResumeOptions> resume = resume_of_stages(stages, args.resume);
  Meeting meeting;
  if (!args.plan.wanted()) {
    for (const ResolvedConfig& stage : stages) check_inputs_exist(stage);
    meeting = meet_ranks(stages.front().config.dist.timeout_s.start);
  }
  for (size_t i = 0; i < stages.size(); ++i) {
    if (stages.size() > 1) {
      log::info(cat("stage ", i + 1, " of ", stages.size(), ": ", stages[i].config.run.dir));
    }
    if (args.plan.wanted()) {
      std::cout << plan_output(stages[i], args.plan);
      continue;
    }
    run_as_rank(meeting, [&](const EndProcess& end) {
      return run_training(stages[i], resume[i], meeting, static_cast<int>(i), end);
    });
  }
}

}  // namespace

void add_train(CLI::App& app) {
  auto args = std::make_shared<TrainArgs>();
  CLI::App* command =
      app.add_subcommand("train", "Train what a config says; the same line goes on");
  command->add_option("config", args->config, "YAML file of one run, or of several stages")
      ->required();
  command->add_option("--set", args->sets, "Override a value: --set train.seed=7 (repeatable)")
      ->allow_extra_args(false);
  command
      ->add_option(
          "--resume", args->resume.from,
          "auto: from the newest checkpoint of run.dir, if any; never; or a checkpoint folder (of "
          "several stages: of the one it belongs to)")
      ->capture_default_str();
  command->add_flag("--accept-changes", args->resume.accept_changes,
                    "Resume although the config differs from the checkpoint's");
  add_plan_options(*command, args->plan);
  command->footer(
      "Example:\n"
      "  mgm train configs/tiny/stage1.yaml --set train.max_steps=100\n"
      "  mgm train configs/stage2/vicuna_7b.yaml --plan --world 16 --gpu-memory 80GiB\n"
      "  mgm train configs/stage2/yi_34b.yaml --plan --world 64,256,1024 --markdown\n"
      "  mgm train configs/stage2/vicuna_7b.yaml --rehearse --world 16 --set dist.mode=zero3\n"
      "Exit codes: 0 done, 2 config, 3 data, 4 checkpoint or weights, 5 ranks, 6 loss not finite,\n"
      "130 / 143 / 138 stopped by SIGINT / SIGTERM / SIGUSR1 after a save, 1 anything else.");
  command->callback([args] { train(*args); });
}

}  // namespace mgm::cli
