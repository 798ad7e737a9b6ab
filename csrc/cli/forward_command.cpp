// mgm forward: every intermediate of one training forward, for comparing with another
// implementation.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/error.h"
#include "base/file_access.h"
#include "checkpoint/tensor_writer.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "data/pack.h"
#include "infer/generator.h"

namespace mgm::cli {
namespace {

struct ForwardArgs {
  ModelArgs model;
  std::vector<std::string> images;
  std::string prompt, answer, mining = "absorbed", out;
  bool with_answer = false;
};

// The conversation as ids and labels: rendered by the template, or with `none` the prompt's own
// text with the answer behind it, nothing added (no end token either).
Encoded encode(const ForwardArgs& args, const LoadedModel& model, int64_t pictures) {
  std::string prompt = args.prompt;
  if (pictures > 0 && prompt.find(kImageMarker) == prompt.npos) {
    for (int64_t i = 0; i < pictures; ++i) prompt = std::string(kImageMarker) + "\n" + prompt;
  }
  const Tokenizer& tokenizer = *model.tokenizer;
  if (args.model.template_name == "none") {
    const auto begin = static_cast<int64_t>(prompt.size());
    const std::string text = prompt + args.answer;
    Encoded encoded = encode_with_images(
        tokenizer, text,
        args.with_answer ? std::vector<Span>{{begin, static_cast<int64_t>(text.size())}}
                         : std::vector<Span>{});
    if (encoded.images != pictures) {
      throw DataError("the prompt has ", encoded.images, " image markers for ", pictures,
                      " pictures");
    }
    return encoded;
  }
  const ConversationEncoder encoder(load_template(model.description.text.template_name), tokenizer,
                                    MarkerPolicy::kError);
  std::vector<Turn> turns = {{"human", prompt}};
  if (!args.with_answer) return encoder.encode_prompt(turns, pictures, "--prompt");
  turns.push_back({"gpt", args.answer});
  return encoder.encode_training(turns, pictures, "--prompt and --answer");
}

at::Tensor int64_row(const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong).unsqueeze(0);
}

void forward(ForwardArgs args) {
  FileUse files;
  read_model(files, args.model);
  for (const std::string& path : args.images) files.reads(path);
  files.writes("--out", args.out);
  args.prompt = clean_text(args.prompt, "--prompt");
  args.answer = clean_text(args.answer, "--answer");
  // Some template has to be there; this one is compared with nothing.
  ModelArgs model_args = args.model;
  if (model_args.template_name == "none") model_args.template_name = "plain";
  ModelLoadOptions options = load_options(model_args);
  options.mining = args.mining == "reference" ? MiningKernel::kReference : MiningKernel::kAbsorbed;
  const LoadedModel loaded = load_model(args.model.dir, options);
  const MiniGemini& model = *loaded.model;

  const Encoded encoded = encode(args, loaded, static_cast<int64_t>(args.images.size()));
  Sample sample = widen_markers(encoded, model.geometry().tokens());
  for (const std::string& path : args.images) {
    sample.pictures.push_back(load_picture(path, loaded.description));
  }
  const auto length = static_cast<int64_t>(sample.ids.size());
  const int64_t limit = loaded.description.model.llm.max_positions;
  if (length > limit) {
    throw DataError("the prompt has ", length, " tokens, visual ones included; the model takes ",
                    limit);
  }
  const Batch batch = pack({sample}, 0, 0).to(model.device());

  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> trace;
  DirectRunner runner;
  ForwardContext ctx = loaded.context(runner);
  ctx.trace = &trace;
  const at::Tensor hidden = model.hidden(batch, ctx);
  std::map<std::string, at::Tensor> out = {
      {"input_ids", int64_row({encoded.ids.begin(), encoded.ids.end()})},
      {"labels", int64_row(sample.labels)},
      {"inputs_embeds", trace.at("inputs_embeds").unsqueeze(0)},
      {"logits", model.decoder().logits(hidden, ctx).unsqueeze(0)}};
  for (const char* name : {"lr_features", "mined", "hr_stage0", "hr_stage1", "hr_stage2",
                           "hr_stage3", "visual_tokens"}) {
    if (trace.count(name)) out[name] = trace.at(name);
  }
  if (args.with_answer && batch.num_targets() > 0) {
    const at::Tensor rows = hidden.index_select(0, batch.target_rows);
    out["loss"] = (model.decoder().loss_sum(rows, batch.targets, ctx) / double(batch.num_targets()))
                      .reshape({1});
  }
  for (auto& [name, tensor] : out) tensor = tensor.to(at::kCPU).contiguous();
  write_safetensors(args.out, out);
}

}  // namespace

void add_forward(CLI::App& app) {
  auto args = std::make_shared<ForwardArgs>();
  CLI::App* command = app.add_subcommand("forward", "Write every intermediate of one forward pass");
  add_model_options(*command, args->model);
  add_drop_path_option(*command, args->model);
  command->get_option("--template")
      ->description("Chat template, or none: the prompt's text as it is");
  command->add_option("--image", args->images, "Picture (repeatable), in the order of the markers")
      ->allow_extra_args(false);
  command->add_option("--prompt", args->prompt, "The user's turn")->required();
  CLI::Option* answer = command->add_option("--answer", args->answer,
                                            "The assistant's turn: gives labels and a loss");
  command->add_option("--mining", args->mining, "absorbed or reference")
      ->check(CLI::IsMember({"absorbed", "reference"}))
      ->capture_default_str();
  command->add_option("--out", args->out, "safetensors file to write")->required();
  command->footer(
      "Tensors: input_ids (markers are -200) and labels [1,T]; lr_features, mined (without the\n"
      "residual) and visual_tokens [B,N,C], global view before tiles; hr_stage0..3 NCHW;\n"
      "inputs_embeds [1,T,H]; logits [1,T,V] fp32, not shifted; loss [1] with --answer.\n"
      "Example:\n"
      "  mgm forward MODEL_DIR --image cat.jpg --prompt 'What is this?' --answer 'A cat.' "
      "--out out.safetensors");
  command->callback([args, answer] {
    args->with_answer = answer->count() > 0;
    forward(*args);
  });
}

}  // namespace mgm::cli
