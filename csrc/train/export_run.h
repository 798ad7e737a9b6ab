// From a run folder or one of its checkpoints to a model directory (assemble/model_dir.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "base/fs.h"
#include "checkpoint/hf_directory.h"
#include "train/export_verify.h"

namespace mgm {

enum class ExportPart {
  kAll,
  kLlm,      // a plain Hugging Face language model
  kAdapter,  // the adapter alone, in PEFT's layout (assemble/adapter_dir.h)
};

struct ExportRequest {
  fs::path from;  // a run folder (its newest checkpoint) or a checkpoint folder
  fs::path out;
  std::optional<at::ScalarType> dtype;  // default: the dtype the run used its weights in
  ExportPart part = ExportPart::kAll;
  bool merge = false;            // fold adapters into the weights they belong to
  bool verify = false;           // load what is written and compare logits
  HfDirectoryOptions directory;  // sizes of shards, replacing an existing directory
};

// A run with adapters is exported as one part alone or merged: base + scale B A in fp32, rounded
// once; anything else is a ConfigError, and so is an `out` that the run has its weights from. What
// trained comes from the checkpoint's fp32 masters, what was frozen from where the run had it from;
// a frozen weight that has changed since is a CheckpointError, and so is a value that fp16 does not
// hold. Parameter by parameter out of mapped files: of memory of its own the export takes about the
// largest parameter, in the dtype that is written. With `verify`, what the comparison found; a
// directory that fails it never becomes `out`.
std::optional<ExportCheck> export_run(const ExportRequest& request);

}  // namespace mgm
