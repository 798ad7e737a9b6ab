// mgm convert: weights of any format as a directory of safetensors.
#include <malloc.h>

#include <iostream>

#include "assemble/convert.h"
#include "base/log.h"
#include "base/strings.h"
#include "cli/commands.h"
#include "cli/numbers.h"

namespace mgm::cli {
namespace {

struct ConvertArgs {
  std::string from, out, adapter, dtype = "auto";
  uint64_t shard_bytes = HfDirectoryOptions().max_shard_bytes;
  bool replace = false;
};

void run(const ConvertArgs& args) {
  ConvertRequest request;
  request.from = args.from;
  request.out = args.out;
  request.adapter = args.adapter;
  request.directory.max_shard_bytes = args.shard_bytes;
  request.directory.replace = args.replace;
  if (args.dtype == "fp32") request.dtype = at::kFloat;
  if (args.dtype == "bf16") request.dtype = at::kBFloat16;
  if (args.dtype == "fp16") request.dtype = at::kHalf;
  // One tensor after another: the memory of the last one goes back before the next is read.
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
  const ConvertReport report = convert_weights(request);
  std::cout << args.out << ": " << report.tensors << " tensors, "
            << human_bytes(static_cast<double>(report.bytes)) << ", " << report.converted
            << " converted\n";
  if (!args.adapter.empty()) {
    std::cout << "adapter: folded into " << report.folded << " weights, " << report.replaced
              << " more replaced";
    if (report.added > 0) std::cout << ", " << report.added << " added: now a Mini-Gemini model";
    std::cout << "\n";
  }
  if (!report.copied.empty()) std::cout << "copied: " << join(report.copied, ", ") << "\n";
  if (!report.not_copied.empty()) {
    std::cout << "not copied: " << join(report.not_copied, ", ") << "\n";
  }
  for (const std::string& tower : report.towers_left) {
    log::warn(cat(args.out, ": its config.json names a vision tower that lies in ", tower,
                  "; copy that folder, or the model cannot be loaded"));
  }
  for (const std::string& what : report.not_tensors) {
    log::warn(cat("left out, since it is no tensor: ", what));
  }
  if (report.left_out > 0) {
    log::warn(cat("left out, since they are no weights: ", report.left_out,
                  " tensors outside the training checkpoint's state_dict"));
  }
  if (!report.tokenizer_problem.empty()) {
    log::warn("the tokenizer is not converted: " + report.tokenizer_problem);
  }
  if (report.language_model && !report.tokenizer) {
    log::warn(
        cat(args.out, " has no tokenizer; put the model's tokenizer files beside config.json"));
  }
}

}  // namespace

void add_convert(CLI::App& app) {
  auto args = std::make_shared<ConvertArgs>();
  CLI::App* command =
      app.add_subcommand("convert", "Write weights of any format as a safetensors directory");
  command
      ->add_option("source", args->from,
                   "Directory of a model, a vision tower or an adapter; GGUF, torch or safetensors "
                   "file, or the index of shards")
      ->required();
  command->add_option("--out", args->out, "Directory to write")->required();
  command
      ->add_option("--dtype", args->dtype,
                   "auto (every tensor as it is, quantised ones as fp32), fp32, bf16 or fp16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--adapter", args->adapter,
                      "Directory of a LoRA adapter in PEFT's layout to fold into the weights");
  command
      ->add_option("--max-shard-size", args->shard_bytes,
                   "Bytes of one safetensors file, as 2GB or 500MB; a larger tensor is a file")
      ->transform(byte_size(1))
      ->capture_default_str();
  command->add_flag("--replace", args->replace, "Replace an existing directory of this kind");
  command->footer(
      "Example:\n"
      "  mgm convert SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2 --dtype bf16\n"
      "  mgm convert OpenAI/clip-vit-large-patch14-336 --out models/clip --dtype fp16\n"
      "  mgm convert MODEL_DIR --adapter ADAPTER_DIR --out models/merged\n"
      "Configs, tokenizer and licence files beside the weights are copied; a GGUF file's\n"
      "metadata becomes config.json and tokenizer files. Needs memory for the largest tensor "
      "only.");
  command->callback([args] { run(*args); });
}

}  // namespace mgm::cli
