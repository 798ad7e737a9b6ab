// From files and --set to a validated RunConfig. All problems of a config are found before any is
// printed.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "config/node.h"
#include "config/run_config.h"

namespace mgm {

struct ResolvedConfig {
  RunConfig config;
  // Dotted key -> where its value was written; absent: default. A value that another key implies
  // (the sizes of a named hr_encoder, those that
  // arch: auto reads) has that key as its source.
  std::map<std::string, Where> origins;
  std::string source;                         // the file it was read from
  Where where(const std::string& key) const;  // of the key, its nearest parent, or the file
};

// Fills model.llm for `model.llm.arch: auto`. The formats of model directories belong to layers
// above (assemble/backbone_config.h).
using BackboneReader = std::function<void(ModelConfig&)>;

// Reads `path` with `sets` ("a.b=c", "train.rules[0].lr_scale=2", "stages[1].train.seed=7") on top.
// Weakest first: struct defaults, the parents `extends` names, the file, `sets`. A file with a
// top-level `stages:` list gives one config per item, everything else in the file being common to
// all; a plain file gives one. Throws ConfigError (exit code 2) listing every problem as
// "file:line:col: key: message".
// Without `backbone`, `arch: auto` stays and nothing that hangs on its sizes is checked. With it, a
// written value of model.llm that differs from what was read is an error, but for the activation
// and the weight of the router's loss, which are the trainer's to choose.
std::vector<ResolvedConfig> read_run_configs(const std::string& path,
                                             const std::vector<std::string>& sets,
                                             const BackboneReader& backbone = {});

// The same for a file that must hold one run.
ResolvedConfig read_run_config(const std::string& path, const std::vector<std::string>& sets);

// From text that `to_yaml` wrote (a run folder, a checkpoint); `extends` and `stages` are unknown
// keys here.
ResolvedConfig parse_run_config(const std::string& yaml, const std::string& source);

// Throws ConfigError listing `problems` with the places their keys were written at.
[[noreturn]] void throw_problems(const ResolvedConfig& resolved,
                                 const std::vector<ConfigProblem>& problems);

}  // namespace mgm
