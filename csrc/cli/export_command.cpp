// mgm export: a run's weights as a model directory.
#include <malloc.h>

#include <iostream>

#include "base/strings.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "train/export_run.h"

namespace mgm::cli {
namespace {

struct ExportArgs {
  std::string from, out, dtype = "auto", part = "all";
  uint64_t shard_bytes = HfDirectoryOptions().max_shard_bytes;
  bool replace = false, verify = false, merge = false;
};

void run(const ExportArgs& args) {
  ExportRequest request;
  request.from = args.from;
  request.out = args.out;
  request.verify = args.verify;
  request.part = args.part == "llm"       ? ExportPart::kLlm
                 : args.part == "adapter" ? ExportPart::kAdapter
                                          : ExportPart::kAll;
  request.merge = args.merge;
  request.directory.replace = args.replace;
  request.directory.max_shard_bytes = args.shard_bytes;
  if (args.dtype == "fp32") request.dtype = at::kFloat;
  if (args.dtype == "bf16") request.dtype = at::kBFloat16;
  if (args.dtype == "fp16") request.dtype = at::kHalf;
  // One weight after another: the memory of the last one goes back before the next is read, instead
  // of being kept in pieces.
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
  const std::optional<ExportCheck> check = export_run(request);
  if (!check) return;
  std::cout << "verified: " << check->rows << " x " << check->vocab
            << strf(" logits, max abs difference %.3g, relative L2 %.3g\n", check->max_abs,
                    check->relative_l2);
}

}  // namespace

void add_export(CLI::App& app) {
  auto args = std::make_shared<ExportArgs>();
  CLI::App* command = app.add_subcommand("export", "Write a run's weights as a model directory");
  command->add_option("run", args->from, "Run folder (its newest checkpoint) or checkpoint folder")
      ->required();
  command->add_option("--out", args->out, "Model directory to write")->required();
  command
      ->add_option("--part", args->part,
                   "all; llm: a plain Hugging Face language model; or adapter: what a run with "
                   "model.adapter trained, in PEFT's layout")
      ->check(CLI::IsMember({"all", "llm", "adapter"}))
      ->capture_default_str();
  command->add_flag("--merge", args->merge, "Fold adapters into the weights they belong to");
  command
      ->add_option("--dtype", args->dtype, "auto (as the run used its weights), fp32, bf16 or fp16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command
      ->add_option("--max-shard-size", args->shard_bytes,
                   "Bytes of one safetensors file, as 2GB or 500MB; a larger tensor is a file")
      ->transform(byte_size(1))
      ->capture_default_str();
  command->add_flag(
      "--verify", args->verify,
      "Load what is written and compare its logits with those of the run's weights on "
      "a fixed prompt; if they differ, exit code 4 and no directory. Needs the model "
      "in fp32");
  command->add_flag("--replace", args->replace, "Replace an existing model directory");
  command->footer(
      "Example:\n"
      "  mgm export runs/tiny/stage2 --out runs/tiny/model\n"
      "  mgm export runs/tiny/stage2 --out runs/tiny/llm --part llm\n"
      "  mgm export runs/lora --out models/lora --part adapter\n"
      "  mgm export runs/lora --out models/merged --merge\n"
      "The directory holds config.json, safetensors shards with an index, and the tokenizer.\n"
      "Needs no GPU, and memory for the largest tensor only, whatever the model and the ranks.");
  command->callback([args] { run(*args); });
}

}  // namespace mgm::cli
