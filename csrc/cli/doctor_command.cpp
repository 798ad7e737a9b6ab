// mgm doctor: what would go wrong with a run, before it starts.
#include <iostream>

#include "assemble/backbone_config.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "train/doctor/doctor.h"

namespace mgm::cli {
namespace {

struct DoctorArgs {
  std::string config;
  std::vector<std::string> sets;
  std::string samples = "64";
  DoctorOptions options;
};

int64_t parse_samples(const std::string& text) {
  if (text == "all") return -1;
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != text.npos) {
    throw ConfigError("--samples ", text, ": expected a number or 'all'");
  }
  return std::stoll(text);
}

void doctor(DoctorArgs& args) {
  args.options.samples = parse_samples(args.samples);
  DoctorInput input;
  input.source = args.config;
  try {
    input.stages = read_training_configs(args.config, args.sets);
  } catch (const Error& e) {
    input.unreadable = e.what();
  }
  log::set_quiet(true);
  const Meeting meeting = meet(read_launch_env(), args.options.wait_s);
  const ExitCode code = run_doctor(input, meeting, args.options, [](const std::string& report) {
    std::cout << report << std::flush;
  });
  if (code != ExitCode::kOk) throw Exit{static_cast<int>(code)};
}

}  // namespace

void add_doctor(CLI::App& app) {
  auto args = std::make_shared<DoctorArgs>();
  CLI::App* command = app.add_subcommand(
      "doctor",
      "Say what would go wrong with a run before it starts: config, data, weights, hosts");
  command->add_option("config", args->config, "YAML file of one run, or of several stages")
      ->required();
  command->add_option("--set", args->sets, "Override a value: --set train.seed=7 (repeatable)")
      ->allow_extra_args(false);
  command
      ->add_option("--samples", args->samples,
                   "Samples to build on one rank of each host: a number, or 'all'")
      ->capture_default_str();
  command->add_flag("--deep", args->options.deep,
                    "Read every weight: NaN and infinity, and equal contents on all ranks");
  command
      ->add_option("--wait", args->options.wait_s,
                   "Seconds to wait for ranks to come and groups to connect; at their files "
                   "they may be dist.timeout_s.start, if that is longer")
      ->check(number(0.001, 1e6))
      ->capture_default_str();
  command
      ->add_option("--link", args->options.link_gb_per_s,
                   "Expected GB/s from rank to rank; a warning below")
      ->check(number(1e-6, 1e6));
  command->footer(
      "Runs alone, or as every rank of a job: put it where `mgm train` stands in the launcher's\n"
      "line. The first rank prints one list, worst first. Without --link the links are expected "
      "to\n"
      "pass 15 GB/s between GPUs of one host (PCIe; NVLink passes over 100), 5 between GPUs of\n"
      "several hosts, 0.1 between hosts on the CPU (TCP) and 0.02 on one.\n"
      "Examples:\n"
      "  mgm doctor configs/tiny/stage1.yaml\n"
      "  torchrun --nproc-per-node 8 --no-python mgm doctor configs/stage2/vicuna_7b.yaml --deep\n"
      "Exit codes: 0 nothing failed, else of the first kind that did: 2 config, 3 data,\n"
      "4 weights or checkpoint, 5 ranks, 1 host.");
  command->callback([args] { doctor(*args); });
}

}  // namespace mgm::cli
