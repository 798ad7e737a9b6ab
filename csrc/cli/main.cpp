// mgm: trains, finetunes, evaluates and runs Mini-Gemini models.
#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>

#include "base/error.h"
#include "base/json_problem.h"
#include "base/strings.h"
#include "base/version.h"
#include "cli/commands.h"
#include "train/build.h"
#include "types/vector_math.h"

namespace {

// What needs the names of the model's parameters, or the table of templates.
void check_stage(const mgm::ResolvedConfig& stage) {
  mgm::conversation_template(stage);
  // `arch: auto` has its sizes in a directory that is not opened here.
  if (stage.config.model.llm.arch != mgm::LlmArch::kAuto) mgm::describe_model(stage);
}

// CLI11 names no nearest command.
void check_command(const CLI::App& app, const std::string& word) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  if (std::find(names.begin(), names.end(), word) != names.end()) return;
  const std::string near = mgm::closest(word.substr(0, 80), names);
  throw mgm::ConfigError(
      "unknown command '", mgm::shown(word), "'",
      near.empty() ? "; mgm --help lists them" : mgm::cat("; did you mean 'mgm ", near, "'?"));
}

int run(int argc, char** argv) {
  CLI::App app{"mgm: trains, finetunes, evaluates and runs Mini-Gemini vision-language models"};
  app.require_subcommand(1);
  app.set_version_flag("--version", mgm::cat("mgm ", mgm::version(), " (", mgm::git_commit(), ")"));
  mgm::cli::add_train(app);
  mgm::cli::add_launch(app);
  mgm::cli::add_doctor(app);
  mgm::cli::add_blame(app);
  mgm::cli::add_replay(app);
  mgm::cli::add_data(app);
  mgm::cli::add_config(app, check_stage);
  mgm::cli::add_export(app);
  mgm::cli::add_checkpoint(app);
  mgm::cli::add_inspect(app);
  mgm::cli::add_convert(app);
  mgm::cli::add_chat(app);
  mgm::cli::add_report(app);
  mgm::cli::add_forward(app);
  mgm::cli::add_preprocess(app);
  mgm::cli::add_tokenize(app);
  mgm::cli::add_render(app);
  if (argc > 1 && argv[1][0] != '-') check_command(app, argv[1]);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    // --help and --version end here too, with code 0.
    const int code = app.exit(e);
    return code == 0 ? 0 : static_cast<int>(mgm::ExitCode::kConfig);
  }
  return 0;
}

// A file that is opened must not become standard output or error because these were closed: lines
// of the log would land in it. Opened the wrong way round, so that what is printed fails as before.
void fill_closed_descriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    if (::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) {
      std::exit(static_cast<int>(mgm::ExitCode::kInternal));  // nowhere to say why
    }
  }
}

// What was printed may still wait in a buffer, or be lost: a full disk, a closed pipe.
int printed(int code) {
  std::cout.flush();
  if (std::fflush(stdout) == 0 && std::cout && std::ferror(stdout) == 0) return code;
  std::cerr << "error: standard output could not be written: what was printed there is not whole\n";
  return code == 0 ? static_cast<int>(mgm::ExitCode::kInternal) : code;
}

}  // namespace

int main(int argc, char** argv) {
  fill_closed_descriptors();
  // c10d warns of a peer that is gone with the stack of whoever met it: the warning is enough.
  c10::SetStackTraceFetcher(std::function<std::string()>([] { return std::string(); }));
  try {
    mgm::settle_vector_math();
    return printed(run(argc, argv));
  } catch (const mgm::cli::Exit& e) {
    return printed(e.code);
  } catch (const mgm::ConfigError& e) {  // lines of "file:line:col: key: message"
    std::cerr << mgm::printable(e.what()) << "\n";
    return static_cast<int>(e.code());
  } catch (const mgm::Error& e) {
    std::cerr << "error: " << mgm::printable(e.what()) << "\n";
    return static_cast<int>(e.code());
  } catch (const c10::Error& e) {
    std::cerr << "internal error: " << e.what_without_backtrace() << "\n";
    return static_cast<int>(mgm::ExitCode::kInternal);
  } catch (const mgm::Json::exception& e) {
    std::cerr << "internal error: unexpected JSON: " << mgm::json_problem(e) << "\n";
    return static_cast<int>(mgm::ExitCode::kInternal);
  } catch (const std::exception& e) {
    std::cerr << "internal error: " << e.what() << "\n";
    return static_cast<int>(mgm::ExitCode::kInternal);
  }
}
