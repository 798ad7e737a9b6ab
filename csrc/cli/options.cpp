#include "cli/options.h"

#include "base/log.h"
#include "base/strings.h"
#include "cli/numbers.h"
#include "text/utf8.h"
#include "train/device.h"

namespace mgm::cli {

void add_model_options(CLI::App& command, ModelArgs& args) {
  command.add_option("model", args.dir, "Model directory (config.json, safetensors, tokenizer)")
      ->required();
  command.add_option("--device", args.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command.add_option("--dtype", args.dtype, "auto (fp32 on the CPU, bf16 on a GPU), fp32 or bf16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}))
      ->capture_default_str();
  command.add_option("--template", args.template_name,
                     "Chat template; default: the one the model was trained with");
  command.add_option("--adapter", args.adapter,
                     "Directory of a LoRA adapter in PEFT's layout, on top of the model");
  command
      .add_option("--quantize", args.quantize,
                  "Hold the linears of the language model's blocks in 4 bits (nf4) or 8 (int8): "
                  "less memory, not more speed")
      ->check(CLI::IsMember({"none", "nf4", "int8"}))
      ->capture_default_str();
}

void add_drop_path_option(CLI::App& command, ModelArgs& args) {
  command
      .add_option("--drop-path", args.drop_path_seed,
                  "Only to compare with the published code, which leaves the ConvNeXt's drop "
                  "path on when it answers: a seed that draws the blocks to leave out")
      ->check(seed_number());
}

std::string clean_text(const std::string& text, const std::string& what) {
  int64_t replaced = 0;
  std::string out = valid_utf8(text, &replaced);
  if (replaced > 0) {
    log::warn(cat(what, ": invalid UTF-8: ", replaced, replaced == 1 ? " part" : " parts",
                  " became U+FFFD"));
  }
  return out;
}

void read_model(FileUse& files, const ModelArgs& args) {
  files.reads(args.dir);
  if (!args.adapter.empty()) files.reads(args.adapter);
}

ConversationTemplate template_option(const std::string& name) {
  try {
    return load_template(name);
  } catch (const ConfigError& e) {  // would be printed as a line about a config file
    throw Error(ExitCode::kConfig, cat("--template: ", e.what()));
  }
}

ModelLoadOptions load_options(const ModelArgs& args) {
  TrainConfig wanted;
  wanted.device = args.device == "cpu"    ? DeviceKind::kCpu
                  : args.device == "cuda" ? DeviceKind::kCuda
                                          : DeviceKind::kAuto;
  wanted.dtype = args.dtype == "fp32"   ? DtypeKind::kFloat32
                 : args.dtype == "bf16" ? DtypeKind::kBfloat16
                                        : DtypeKind::kAuto;
  const DeviceSetup setup = setup_device(wanted);
  ModelLoadOptions options;
  options.device = setup.device;
  options.dtype = setup.dtype;
  if (!args.template_name.empty()) template_option(args.template_name);  // before weights are read
  options.template_name = args.template_name;
  options.adapter = args.adapter;
  options.drop_path_seed = args.drop_path_seed;
  options.quantize = args.quantize == "nf4"    ? Quantize::kNf4
                     : args.quantize == "int8" ? Quantize::kInt8
                                               : Quantize::kNone;
  return options;
}

}  // namespace mgm::cli
