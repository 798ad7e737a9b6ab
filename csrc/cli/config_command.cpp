// mgm config show|check|diff|help
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/commands.h"
#include "config/document.h"
#include "config/reader.h"
#include "config/writer.h"

namespace mgm::cli {
namespace {

struct Options {
  std::vector<std::string> files, sets;  // files: of `check` alone
  std::string file, other, key;
  bool plain = false, markdown = false;
};

void add_sets(CLI::App* app, Options& options) {
  app->add_option("--set", options.sets, "key=value on top of the file; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

void show(const Options& options) {
  std::cout << to_yaml(read_run_configs(options.file, options.sets), !options.plain);
}

// Prints the problems of all files before it fails.
void check(const Options& options, const ConfigCheck& further) {
  bool failed = false;
  for (const std::string& file : options.files) {
    try {
      const std::vector<ResolvedConfig> stages = read_run_configs(file, options.sets);
      for (const ResolvedConfig& stage : stages) further(stage);
      std::cout << file << ": ok" << (stages.size() > 1 ? cat(" (", stages.size(), " stages)") : "")
                << "\n";
    } catch (const ConfigError& e) {
      std::cerr << e.what() << "\n";
      failed = true;
    }
  }
  if (failed) throw Exit{static_cast<int>(ExitCode::kConfig)};
}

void print_differences(const RunConfig& a, const RunConfig& b) {
  const std::vector<ConfigDifference> differences = diff(a, b);
  for (const ConfigDifference& d : differences) {
    std::cout << d.key << ": " << d.a.value_or("(absent)") << " -> " << d.b.value_or("(absent)")
              << "\n";
  }
  if (differences.empty()) std::cout << "no difference\n";
}

void differences(const Options& options) {
  const std::vector<ResolvedConfig> b =
      read_run_configs(options.other.empty() ? options.file : options.other, options.sets);
  std::vector<ResolvedConfig> a(b.size());  // the defaults
  if (!options.other.empty()) a = read_run_configs(options.file, {});
  if (a.size() != b.size()) {
    throw ConfigError(options.file, " has ", a.size(), " stages and ", options.other, " ", b.size(),
                      "; only runs of as many stages can be compared");
  }
  if (options.other.empty()) {
    RunConfig defaults;
    resolve_and_check(defaults);
    for (ResolvedConfig& stage : a) stage.config = defaults;
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (a.size() > 1) std::cout << (i ? "\n" : "") << "stages[" << i << "]\n";
    print_differences(a[i].config, b[i].config);
  }
}

void help(const Options& options) {
  std::cout << (options.markdown ? reference_markdown() : key_help(options.key));
}

}  // namespace

void add_config(CLI::App& app, const ConfigCheck& further) {
  CLI::App* config = app.add_subcommand("config", "Show, check, compare and explain configs");
  config->require_subcommand(1);
  config->footer("Example: mgm config show configs/stage2/vicuna_7b.yaml --set train.seed=1");
  const auto options = std::make_shared<Options>();

  CLI::App* one = config->add_subcommand(
      "show", "Print every value a config resolves to, and where it was written");
  one->add_option("FILE", options->file, "a YAML file or a built-in preset")->required();
  one->add_flag("--plain", options->plain, "values only");
  add_sets(one, *options);
  one->footer(
      "The output is a config too: it reads back to the same run.\n"
      "Example: mgm config show configs/stage1/vicuna_7b.yaml --set run.dir=runs/try");
  one->callback([options] { show(*options); });

  CLI::App* many =
      config->add_subcommand("check", "Find all mistakes; exit code 2 if there are any");
  many->add_option("FILE", options->files, "YAML files")->required();
  add_sets(many, *options);
  many->footer("Example: mgm config check configs/stage*/*.yaml");
  many->callback([options, further] { check(*options, further); });

  CLI::App* two = config->add_subcommand(
      "diff", "Compare two configs, or one with the defaults; the exit code is 0 either way");
  two->add_option("A", options->file, "a YAML file")->required();
  two->add_option("B", options->other, "another one; without it A is compared with the defaults");
  add_sets(two, *options);
  two->footer(
      "--set applies to B (to A where there is no B).\n"
      "Example: mgm config diff runs/try/config.yaml configs/stage1/vicuna_7b.yaml");
  two->callback([options] { differences(*options); });

  CLI::App* about = config->add_subcommand("help", "Explain a key, all keys below it, or all");
  about->add_option("KEY", options->key, "for example optimizer.lr, or train.rules");
  about->add_flag("--markdown", options->markdown, "the whole reference, as docs/config.md has it");
  about->footer("Example: mgm config help optimizer");
  about->callback([options] { help(*options); });
}

}  // namespace mgm::cli
