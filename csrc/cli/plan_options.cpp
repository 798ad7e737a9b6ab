#include "cli/plan_options.h"

#include <algorithm>

#include "base/error.h"
#include "cli/numbers.h"
#include "train/rehearsal_run.h"
#include "train/run_plan.h"

namespace mgm::cli {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

// A number with a unit factor: --link 240 is 240e9.
void add_scaled(CLI::App& command, const char* name, double& value, double unit, const char* what) {
  command
      .add_option_function<double>(
          name, [&value, unit](double number) { value = number * unit; },
          cat(what, " [", value / unit, "]"))
      ->check(number(1e-6, 1e6));
}

}  // namespace

void add_plan_options(CLI::App& command, PlanArgs& args) {
  constexpr double kGB = 1e9, kTera = 1e12;
  Cluster& cluster = args.request.cluster;
  CLI::Option* plan = command.add_flag(
      "--plan", args.plan,
      "Only print parameters, FLOPs, memory, communication and time; needs no weights or data");
  CLI::Option* rehearse = command.add_flag(
      "--rehearse", args.rehearse,
      "Only walk every rank through its collectives, without weights, and compare them");
  plan->excludes(rehearse);
  command.add_option("--world", args.worlds, "Ranks to plan or rehearse for, e.g. 8 or 8,16,64")
      ->delimiter(',')
      ->check(whole_number(1, 65536))
      ->capture_default_str();
  command.add_option("--gpus-per-node", cluster.gpus_per_node, "Ranks of one node")
      ->check(whole_number(1, 1024))
      ->capture_default_str();
  command.add_option("--gpu-memory", args.gpu_memory, "Memory of a GPU, with a unit")
      ->transform(byte_size(1))
      ->default_str("80GiB");
  add_scaled(command, "--link", cluster.link, kGB, "GB/s between the GPUs of a node, achieved");
  add_scaled(command, "--network", cluster.network, kGB, "GB/s per GPU between nodes, achieved");
  add_scaled(command, "--flops", cluster.flops, kTera, "TFLOP/s that matrix products achieve");
  command
      .add_option("--tokens", args.request.tokens,
                  "Tokens of a sample, visual ones included [memory: text.max_length, time: an "
                  "assumed mean]")
      ->check(whole_number(1, 1'000'000'000));
  command.add_option("--images", args.request.images, "Pictures of a sample")
      ->check(whole_number(0, 1'000'000))
      ->capture_default_str();
  CLI::Option* json = command.add_flag("--json", args.json, "Print the plan as JSON");
  CLI::Option* markdown = command.add_flag(
      "--markdown", args.markdown, "Print one row per --world: the cheapest mode that fits");
  json->needs(plan)->excludes(markdown);
  markdown->needs(plan);
}

std::string plan_output(const ResolvedConfig& stage, PlanArgs args) {
  if (args.gpu_memory < kGiB) {
    throw ConfigError("--gpu-memory: ", args.gpu_memory, " bytes; give a unit, as in 80GiB");
  }
  args.request.cluster.gpu_memory = static_cast<double>(args.gpu_memory);
  if (!args.rehearse) {
    const PlanFormat format = args.json       ? PlanFormat::kJson
                              : args.markdown ? PlanFormat::kMarkdown
                                              : PlanFormat::kText;
    return plan_report(stage, args.request, args.worlds, format);
  }
  std::string out;
  for (const int world : args.worlds) {
    if (!out.empty()) out += "\n";
    out += rehearsal_report(stage, world, std::min(world, args.request.cluster.gpus_per_node));
  }
  return out;
}

}  // namespace mgm::cli
