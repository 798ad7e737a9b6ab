// From files and --set to a validated RunConfig. All problems of a config are found before any is
// printed.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "config/node.h"
#include "config/run_config.h"

namespace mgm {

struct ResolvedConfig {
  RunConfig config;
  // Dotted key -> where its value was written; absent: default. A value that another key implies
  // (the sizes of a named hr_encoder) has that key as its source.
  std::map<std::string, Where> origins;
  std::string source;                         // the file it was read from
  Where where(const std::string& key) const;  // of the key, its nearest parent, or the file
};

// Reads `path` with `sets` ("a.b=c", "train.rules[0].lr_scale=2", "stages[1].train.seed=7") on top.
// Weakest first: struct defaults, the parents `extends` names, the file, `sets`. A file with a
// top-level `stages:` list gives one config per item, everything else in the file being common to
// all; a plain file gives one. Throws ConfigError (exit code 2) listing every problem as
// "file:line:col: key: message".
std::vector<ResolvedConfig> read_run_configs(const std::string& path,
                                             const std::vector<std::string>& sets);

// The same for a file that must hold one run.
ResolvedConfig read_run_config(const std::string& path, const std::vector<std::string>& sets);

// From text that `to_yaml` wrote (a run folder, a checkpoint); `extends` and `stages` are unknown
// keys here.
ResolvedConfig parse_run_config(const std::string& yaml, const std::string& source);

// Throws ConfigError listing `problems` with the places their keys were written at.
[[noreturn]] void throw_problems(const ResolvedConfig& resolved,
                                 const std::vector<ConfigProblem>& problems);

}  // namespace mgm
