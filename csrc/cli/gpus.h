// --gpus: which GPUs hold a model that answers.
#pragma once

#include <functional>
#include <string>

#include "assemble/placement.h"
#include "cli/options.h"

namespace mgm::cli {

void add_gpus_option(CLI::App& command, std::string& gpus);

// Makes load_model() put a model where `gpus` says: one named GPU takes all, several named ones are
// all used, "auto" takes one if the model fits with its cache, else as few as needed. `load` says
// what will be decoded; it is asked when everything but the weights is there. Throws ConfigError
// for what is no list of GPUs that are there, and where GPUs are named for a model on the CPU;
// loading throws it if nothing fits.
void place_on_gpus(const std::string& gpus,
                   std::function<DecodeLoad(const LoadedModel& unbound)> load,
                   ModelLoadOptions& options);

}  // namespace mgm::cli
