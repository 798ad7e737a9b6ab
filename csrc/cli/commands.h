// One function per sub-command: it declares its options on `app` and sets the callback that runs
// it. Callbacks throw typed errors; main.cpp is the only place that turns them into exit codes.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace mgm {
struct ResolvedConfig;
}  // namespace mgm

namespace mgm::cli {

// A callback that ends with an exit code other than 0 without an error message (for example a check
// that has printed its findings) throws this.
struct Exit {
  int code;
};

// What `config check` asks of a stage beyond its own rules; throws ConfigError.
using ConfigCheck = std::function<void(const ResolvedConfig&)>;

void add_blame(CLI::App& app);
void add_chat(CLI::App& app);
void add_checkpoint(CLI::App& app);                          // checkpoint ls|verify|diff
void add_config(CLI::App& app, const ConfigCheck& further);  // config show|check|diff|help
void add_convert(CLI::App& app);
void add_data(CLI::App& app);  // data check|show
void add_doctor(CLI::App& app);
void add_export(CLI::App& app);
void add_forward(CLI::App& app);
void add_inspect(CLI::App& app);
void add_launch(CLI::App& app);
void add_preprocess(CLI::App& app);
void add_render(CLI::App& app);
void add_replay(CLI::App& app);
void add_report(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_train(CLI::App& app);

}  // namespace mgm::cli
