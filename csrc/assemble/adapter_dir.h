// A directory with a low-rank adapter in PEFT's layout: adapter_config.json and what
// checkpoint/adapter_file.h reads. Ours also hold config.json and the tokenizer, so that they name
// a whole model together with the base they were trained on; PEFT and transformers ignore both.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "assemble/model_dir.h"

namespace mgm {

// Rank, alpha, dropout, rslora; `targets` are the linears whose adapters the files hold, whatever
// target_modules says. Throws CheckpointError on another kind of adapter than plain LoRA.
AdapterConfig read_adapter_config(const fs::path& dir);

// Throws CheckpointError where the config's target_modules names linears of the blocks, out of all
// those of the model, that the files hold no adapter of: a file that lost some.
void check_adapter_is_whole(const fs::path& dir, const std::vector<std::string>& linears);

// base_model_name_or_path as a folder: relative to the current one, else to `dir`. Throws
// CheckpointError if it is none.
fs::path adapter_base(const fs::path& dir);

// adapter_config.json. `base`: path of the model the adapter belongs to, may be empty.
OrderedJson to_peft_config(const AdapterConfig& adapter, const std::vector<Linear*>& linears,
                           const std::string& base);

// Writes `dir`, whole or not at all: adapters, the bridge (projector, mining), which a plain
// language model lacks, and every other parameter that is not as the base has it.
void write_adapter(const fs::path& dir, const ModelContent& content,
                   const std::vector<Linear*>& linears,
                   const std::function<bool(const std::string& name)>& is_of_base,
                   const std::string& base, at::ScalarType dtype,
                   const HfDirectoryOptions& options);

}  // namespace mgm
