// mgm launch: several ranks of another mgm command.
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "launch/launcher.h"

namespace mgm::cli {
namespace {

// What cannot be shown any more (the terminal is gone) is lost; the ranks go on, and have their log
// files.
void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

void launch(LaunchPlan plan, const std::vector<std::string>& arguments) {
  if (!arguments.empty()) {
    plan.command = {std::filesystem::read_symlink("/proc/self/exe").string()};
    plan.command.insert(plan.command.end(), arguments.begin(), arguments.end());
  }
  plan.environment = own_environment();
  plan.write = write_all;
  const int code = run_launch(plan);
  if (code != 0) throw Exit{code};
}

}  // namespace

void add_launch(CLI::App& app) {
  auto plan = std::make_shared<LaunchPlan>();
  auto arguments = std::make_shared<std::vector<std::string>>();
  CLI::App* command =
      app.add_subcommand("launch", "Start N ranks of a command on this host, and watch them");
  command->add_option("--nproc", plan->nproc, "Ranks on this host: one per GPU")
      ->required()
      ->type_name("N");
  command
      ->add_option("--restarts", plan->restarts,
                   "Start all ranks again up to this often, if a rank was killed by a signal or "
                   "ended with exit code 1 or 5; train goes on from the newest checkpoint, also "
                   "where its --resume names an older one")
      ->type_name("R")
      ->capture_default_str();
  command
      ->add_option("--min-nproc", plan->min_nproc,
                   "When the same rank has failed twice, go on with fewer (the next smaller "
                   "divisor of --nproc), but not fewer than this; default: never")
      ->type_name("M");
  command
      ->add_option("--grace", plan->grace_s,
                   "Seconds between SIGTERM and SIGKILL when the ranks are ended")
      ->type_name("SECONDS")
      ->check(number(0, 1e6))
      ->capture_default_str();
  command->add_option("--nnodes", plan->nodes, "Hosts; each runs its own mgm launch")
      ->type_name("NODES")
      ->capture_default_str();
  command->add_option("--node-rank", plan->node, "Number of this host, from 0")
      ->type_name("NODE")
      ->capture_default_str();
  command->add_option("--master", plan->master, "Host of node 0 and a free port there")
      ->type_name("HOST:PORT");
  command
      ->add_option("--join-timeout", plan->join_timeout_s,
                   "Seconds to wait for the launchers of all hosts")
      ->type_name("SECONDS")
      ->check(number(0.001, 1e6))
      ->capture_default_str();
  command->add_option("command", *arguments, "What to run: the arguments of mgm, behind --")
      ->required();
  command->footer(
      "Example:\n"
      "  mgm launch --nproc 8 --restarts 3 -- train configs/stage2/vicuna_7b.yaml\n"
      "  mgm launch --nnodes 2 --node-rank 0 --master gpu1:29400 --nproc 8 -- train CONFIG.yaml\n"
      "Lines of a rank begin with its number, as in \"[3] \". SIGTERM, SIGINT and SIGUSR1 are\n"
      "passed on to the ranks. When a rank fails, the others are ended.\n"
      "Exit codes: that of the first rank that failed (128 + n: killed by signal n), else 0, or\n"
      "143 / 130 / 138 when the ranks stopped as a signal asked.");
  command->callback([plan, arguments] { launch(*plan, *arguments); });
}

}  // namespace mgm::cli
