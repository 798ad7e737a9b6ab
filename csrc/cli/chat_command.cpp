// mgm chat: questions about a picture, one after another or a single one.
#include <unistd.h>

#include <iostream>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "infer/generator.h"

namespace mgm::cli {
namespace {

struct ChatArgs {
  ModelArgs model;
  std::vector<std::string> images;
  std::string prompt;
  SamplingConfig sampling;
};

void ask(const Generator& generator, std::vector<Turn>& turns, const std::string& question,
         const at::Tensor& visual) {
  turns.push_back({"human", question});
  const Answer answer = generator.answer(
      turns, visual, [](const std::string& text) { std::cout << text << std::flush; });
  std::cout << (answer.stopped ? "" : " [cut at the token limit]") << "\n" << std::flush;
  turns.push_back({"gpt", answer.text});
}

void chat(const ChatArgs& args) {
  const LoadedModel model = load_model(args.model.dir, load_options(args.model));
  std::vector<Picture> pictures;
  for (const std::string& path : args.images) {
    pictures.push_back(load_picture(path, model.description));
  }
  DirectRunner runner;
  const at::Tensor visual = encode_pictures(model, pictures, ForwardContext{runner});
  const Generator generator(model, args.sampling);
  std::vector<Turn> turns;
  if (!args.prompt.empty()) {
    ask(generator, turns, args.prompt, visual);
    return;
  }
  const bool terminal = ::isatty(STDIN_FILENO) == 1;
  if (terminal) std::cerr << "One question per line; an empty line or Ctrl-D ends.\n";
  std::string line;
  while ((terminal ? std::cerr << "> " : std::cerr) && std::getline(std::cin, line)) {
    if (trim(line).empty()) {
      if (terminal) break;
      continue;
    }
    // The first question carries the pictures' markers, so that later turns keep them in place.
    if (turns.empty() && line.find(kImageMarker) == line.npos) {
      for (size_t i = 0; i < pictures.size(); ++i) line = std::string(kImageMarker) + "\n" + line;
    }
    ask(generator, turns, line, visual);
  }
}

}  // namespace

void add_chat(CLI::App& app) {
  auto args = std::make_shared<ChatArgs>();
  CLI::App* command = app.add_subcommand("chat", "Ask a model about pictures");
  add_model_options(*command, args->model);
  command->add_option("--image", args->images, "Picture (repeatable)")->allow_extra_args(false);
  command->add_option("--prompt", args->prompt, "Ask this and end; else questions come from stdin");
  command->add_option("--temperature", args->sampling.temperature, "0: greedy")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--top-p", args->sampling.top_p, "Sample from the likeliest tokens of this mass")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", args->sampling.seed, "Of sampling")->capture_default_str();
  command->add_option("--max-new-tokens", args->sampling.max_new_tokens, "Longest answer")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->footer(
      "Example:\n"
      "  mgm chat runs/tiny/model --image data/embedded/images/apple.png "
      "--prompt 'What is in the picture?'\n"
      "  mgm chat MODEL_DIR --image photo.jpg --temperature 0.7 --top-p 0.9 --seed 1");
  command->callback([args] { chat(*args); });
}

}  // namespace mgm::cli
