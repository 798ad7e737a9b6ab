// mgm blame: which rank ended a job, from the flight records its ranks left.
#include <iostream>

#include "cli/commands.h"
#include "dist/blame.h"
#include "dist/flight_record.h"

namespace mgm::cli {

void add_blame(CLI::App& app) {
  auto run_dir = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("blame", "Say which rank failed or did not enter which collective");
  command->add_option("run_dir", *run_dir, "Run folder of a job that failed")->required();
  command->footer(
      "Reads RUN_DIR/flight/rank_N.json, which every rank writes when a job of several ranks ends\n"
      "badly; the next start moves them to RUN_DIR/flight_before, which is read where no rank has\n"
      "failed since. The first line is the most telling one.\n"
      "Example:\n"
      "  mgm blame work_dirs/MGM/MGM-7B\n"
      "Exit codes: 0 printed, 3 no records or a damaged one.");
  command->callback([run_dir] {
    if (flight_records_are_old(*run_dir)) {
      std::cout << "The run has been started again since, and no rank has failed; before that:\n";
    }
    for (const std::string& finding : blame(read_flight_records(*run_dir))) {
      std::cout << finding << "\n";
    }
  });
}

}  // namespace mgm::cli
