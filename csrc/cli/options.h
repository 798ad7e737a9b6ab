// Options that several commands share.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "assemble/model_dir.h"
#include "base/file_access.h"
#include "text/conversation.h"

namespace mgm::cli {

struct ModelArgs {
  std::string dir;
  std::string device = "auto";
  std::string dtype = "auto";
  std::string template_name;
  std::string adapter;
  std::string quantize = "none";
  std::optional<uint64_t> drop_path_seed;
};

// MODEL_DIR, --device, --dtype, --template, --adapter and --quantize.
void add_model_options(CLI::App& command, ModelArgs& args);

// --drop-path, for commands that compare with the reference.
void add_drop_path_option(CLI::App& command, ModelArgs& args);

// `text` with U+FFFD for what is no UTF-8, of which a warning gives the number; `what` names the
// text.
std::string clean_text(const std::string& text, const std::string& what);

// Notes the files of the model and its adapter as read.
void read_model(FileUse& files, const ModelArgs& args);

// The chat format that --template names. Throws Error(kConfig) naming the option.
ConversationTemplate template_option(const std::string& name);

// auto: the GPU where there is one; fp32 on the CPU, bf16 on the GPU.
ModelLoadOptions load_options(const ModelArgs& args);

}  // namespace mgm::cli
