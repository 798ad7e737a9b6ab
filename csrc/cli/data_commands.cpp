// mgm data check | show
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>

#include "assemble/backbone_config.h"
#include "base/error.h"
#include "base/file_access.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/strings.h"
#include "base/timer.h"
#include "cli/commands.h"
#include "data/check.h"
#include "data/show.h"
#include "text/tokenizer.h"

namespace mgm::cli {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> sets;
  bool json = false;
  int64_t index = 0;
  int64_t stage = 1;
  std::string html;
};

// What the data room needs to build samples of one config.
struct Opened {
  explicit Opened(const RunConfig& run)
      : config(run),
        index(run.data.sources, static_cast<int>(run.data.workers)),
        tokenizer(load_tokenizer(tokenizer_path(run))),
        builder(config, index, *tokenizer) {
    if (index.size() == 0) throw DataError("data.sources hold no records: nothing to look at");
  }

  const RunConfig& config;
  AnnotationIndex index;
  std::unique_ptr<Tokenizer> tokenizer;
  SampleBuilder builder;
};

void show_progress(int64_t done, int64_t total, int64_t defects, const Timer& timer) {
  const double rate = static_cast<double>(done) / timer.seconds();
  std::fprintf(stderr, "\r%s / %s samples, %s defects, %.0f samples/s, %s left \x1b[K",
               with_commas(done).c_str(), with_commas(total).c_str(), with_commas(defects).c_str(),
               rate, human_seconds(static_cast<double>(total - done) / rate).c_str());
  if (done == total) std::fprintf(stderr, "\n");
}

void check(const Options& options) {
  int64_t defects = 0;
  OrderedJson json = OrderedJson::array();
  const std::vector<ResolvedConfig> configs = read_training_configs(options.config, options.sets);
  for (const ResolvedConfig& resolved : configs) {
    const Opened opened(resolved.config);
    const Timer timer;
    CheckProgress progress;
    if (::isatty(STDERR_FILENO) != 0) {
      progress = [&](int64_t done, int64_t total, int64_t bad) {
        show_progress(done, total, bad, timer);
      };
    }
    const CheckReport report =
        check_data(opened.builder, static_cast<int>(resolved.config.data.workers), progress);
    defects += static_cast<int64_t>(report.problems.size());
    if (options.json) {
      json.push_back(check_to_json(report, opened.builder));
      continue;
    }
    if (configs.size() > 1) std::cout << "== stage " << &resolved - configs.data() + 1 << "\n";
    std::cout << format_check(report, opened.builder, resolved.config) << "checked in "
              << human_seconds(timer.seconds()) << "\n";
  }
  if (options.json) {
    const OrderedJson& out = configs.size() == 1 ? json[0] : json;
    std::cout << out.dump(2, ' ', false, OrderedJson::error_handler_t::replace) << "\n";
  }
  if (defects > 0) throw Exit{static_cast<int>(ExitCode::kData)};
}

void show(const Options& options) {
  const std::vector<ResolvedConfig> configs = read_training_configs(options.config, options.sets);
  const auto stages = static_cast<int64_t>(configs.size());
  if (options.stage < 1 || options.stage > stages) {
    throw ConfigError("--stage ", options.stage, ": ", options.config, " has ", stages,
                      stages == 1 ? " stage" : " stages, counted from 1");
  }
  const Opened opened(configs[static_cast<size_t>(options.stage - 1)].config);
  if (options.index < 0 || options.index >= opened.index.size()) {
    throw ConfigError("--index ", options.index, ": the data have ", opened.index.size(),
                      " samples, counted from 0");
  }
  const SampleResult result = opened.builder.build(options.index);
  if (const auto* problem = std::get_if<Problem>(&result)) throw DataError(describe(*problem));
  const Sample& sample = std::get<Sample>(result);
  if (!options.html.empty()) {
    FileUse files;
    files.reads(options.config);
    files.reads(tokenizer_path(opened.config));
    for (const DataSource& source : opened.config.data.sources) files.reads(source.annotations);
    for (const Picture& picture : sample.pictures) files.reads(picture.path);
    files.writes("--html", options.html);
    write_file_atomic(options.html, show_html(sample, opened.builder));
    std::cout << "wrote " << options.html << "\n";
    return;
  }
  const bool terminal = ::isatty(STDOUT_FILENO) != 0;
  std::cout << show_text(sample, opened.builder,
                         terminal ? Marks{"\x1b[30;42m", "\x1b[0m"} : Marks{});
}

void add_config_options(CLI::App& command, Options& options) {
  command.add_option("config", options.config, "config file (YAML)")->required();
  command.add_option("--set", options.sets, "override a key: --set data.workers=2")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

}  // namespace

void add_data(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* data = app.add_subcommand("data", "Look at training data");
  data->require_subcommand(1);
  data->footer("Example: mgm data check configs/tiny/stage2.yaml");

  CLI::App* checker = data->add_subcommand(
      "check", "Build every sample: counts, lengths, every defect with file and sample id");
  add_config_options(*checker, *options);
  checker->add_flag("--json", options->json, "print JSON");
  checker->footer(
      "Exit code 3 if any sample has a defect.\n"
      "Example: mgm data check configs/tiny/stage1.yaml --set data.workers=2");
  checker->callback([options] { check(*options); });

  CLI::App* shower = data->add_subcommand(
      "show", "One sample: rendered text with supervised tokens marked, ids, image geometry");
  add_config_options(*shower, *options);
  shower->add_option("--index", options->index, "the sample, counted from 0")->required();
  shower->add_option("--stage", options->stage, "of a file with several stages, counted from 1");
  shower->add_option("--html", options->html, "write a page with the pictures to this file");
  shower->footer("Example: mgm data show configs/tiny/stage2.yaml --index 3 --html sample.html");
  shower->callback([options] { show(*options); });
}

}  // namespace mgm::cli
