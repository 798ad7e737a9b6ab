// mgm chat: questions about pictures: one after another, a single one, or a file of them.
#include <ATen/ATen.h>
#include <unistd.h>

#include <iostream>
#include <map>

#include "base/error.h"
#include "base/file_access.h"
#include "base/log.h"
#include "base/strings.h"
#include "cli/commands.h"
#include "cli/gpus.h"
#include "cli/numbers.h"
#include "cli/options.h"
#include "infer/generator.h"
#include "infer/prompt_file.h"

namespace mgm::cli {
namespace {

struct ChatArgs {
  ModelArgs model;
  std::vector<std::string> images;
  std::optional<std::string> prompt;
  SamplingConfig sampling;
  std::string trim = "none";
  std::string batch, out, stats;
  int64_t batch_size = 8;
  bool no_graphs = false;
  std::string gpus = "auto";
};

// A question that says nowhere where its pictures belong has them in front.
std::string with_pictures(std::string question, int64_t pictures) {
  if (question.find(kImageMarker) != question.npos) return question;
  for (int64_t i = 0; i < pictures; ++i) question = std::string(kImageMarker) + "\n" + question;
  return question;
}

// One conversation. What fails leaves it as it was.
class Chat {
 public:
  // With --trim turns, a conversation that grows too long loses its oldest turns instead of being
  // refused.
  Chat(const LoadedModel& model, const ChatArgs& args)
      : model_(model),
        generator_(model, args.sampling, !args.no_graphs),
        trim_(args.trim == "turns") {}

  // The picture joins the next question.
  void add_picture(const std::string& path) {
    DirectRunner runner;
    const int64_t number = visual_NTH_.defined() ? visual_NTH_.size(0) : 0;
    const at::Tensor tokens = encode_pictures(model_, {load_picture(path, model_.description)},
                                              model_.context(runner), {number});
    visual_NTH_ = visual_NTH_.defined() ? at::cat({visual_NTH_, tokens}) : tokens;
    ++fresh_pictures_;
  }

  // Streams the answer to stdout. An empty answer cannot be part of a conversation, so its question
  // is forgotten.
  void ask(const std::string& question) {
    std::vector<Turn> turns = turns_;
    turns.push_back({"human", with_pictures(question, fresh_pictures_)});
    if (trim_) turns = trimmed(turns);
    const Answer answer = generator_.answer(
        turns, visual_NTH_, [](const std::string& text) { std::cout << text << std::flush; });
    std::cout << (answer.stopped ? "" : " [cut at the token limit]") << "\n" << std::flush;
    if (answer.text.empty()) {
      log::warn("the answer is empty; its question is left out of the conversation");
      return;
    }
    turns.push_back(answer_turn(answer.text));
    turns_ = std::move(turns);
    fresh_pictures_ = 0;
  }

  void start_anew() {
    turns_.clear();
    visual_NTH_ = at::Tensor();
    fresh_pictures_ = 0;
  }

 private:
  std::vector<Turn> trimmed(const std::vector<Turn>& turns) const {
    const int64_t pictures = visual_NTH_.defined() ? visual_NTH_.size(0) : 0;
    TrimmedTurns fitted = generator_.prompts().trim(turns, pictures, "prompt");
    if (fitted.dropped > 0) {
      log::warn(cat("the conversation has grown to ", fitted.tokens_before, " tokens; ",
                    fitted.dropped == 1
                        ? std::string("its oldest question and the answer to it are")
                        : cat("its ", fitted.dropped, " oldest questions and their answers are"),
                    " left out from now on, which leaves ", fitted.tokens_after));
    }
    return std::move(fitted.turns);
  }

  const LoadedModel& model_;
  Generator generator_;
  bool trim_;
  std::vector<Turn> turns_;
  at::Tensor visual_NTH_;       // of all pictures so far
  int64_t fresh_pictures_ = 0;  // the last ones, that no question has taken yet
};

void take_line(Chat& chat, const std::string& line) {
  constexpr std::string_view kImage = "/image";
  if (line == "/new") {
    chat.start_anew();
  } else if (line == kImage) {
    throw DataError("/image FILE: the file of the picture is missing");
  } else if (line.starts_with(cat(kImage, " ")) || line.starts_with(cat(kImage, "\t"))) {
    chat.add_picture(std::string(trim(line.substr(kImage.size()))));
  } else {
    chat.ask(clean_text(line, "standard input"));
  }
}

void converse(Chat& chat) {
  const bool terminal = ::isatty(STDIN_FILENO) == 1;
  if (terminal) {
    std::cerr << "One question per line. /image FILE adds a picture, /new starts a new "
                 "conversation, an empty line or Ctrl-D ends.\n";
  }
  std::string line;
  while ((terminal ? std::cerr << "> " : std::cerr) && std::getline(std::cin, line)) {
    line = std::string(trim(line));
    if (line.empty() && terminal) break;
    if (line.empty()) continue;
    try {
      take_line(chat, line);
    } catch (const DataError& e) {
      if (!terminal) throw;  // a script has to notice; a person can go on
      std::cerr << "error: " << printable(e.what()) << "\n";
    }
  }
}

// Answers in the order of their questions, each written as soon as those before it are.
class OrderedAnswers {
 public:
  // `path` empty: stdout. A file is emptied when the first answer is there, not before.
  OrderedAnswers(const std::vector<Json>& ids, const std::string& path) : ids_(ids), path_(path) {}

  void take(size_t number, const Answer& answer) {
    if (!answer.error.empty()) errors_[number] = answer.error;
    waiting_[number] = answer_line(ids_[number], answer);
    for (; waiting_.count(next_) > 0; ++next_) {
      write(waiting_[next_]);
      waiting_.erase(next_);
    }
  }

  void finish() {
    if (file_) file_->finish();
  }
  // Throws DataError if a question has no answer.
  void check() const {
    if (errors_.empty()) return;
    throw DataError(errors_.begin()->second, " (", errors_.size(), " of ", ids_.size(),
                    " questions have no answer; the others are written)");
  }

 private:
  void write(const std::string& line) {
    if (!file_ && !path_.empty()) file_.emplace(path_);
    if (file_) {
      file_->write(line);
    } else {
      std::cout << line << std::flush;
    }
  }

  const std::vector<Json>& ids_;
  const std::string path_;
  std::optional<FileWriter> file_;
  std::map<size_t, std::string> waiting_;
  std::map<size_t, std::string> errors_;
  size_t next_ = 0;
};

OrderedJson stats_json(const BatchStats& s) {
  return {{"rows", s.rows},
          {"capacity", s.capacity},
          {"cache_bytes", s.cache_bytes},
          {"prompts", s.prompts},
          {"prompt_tokens", s.prompt_tokens},
          {"prompt_passes", s.prompt_passes},
          {"prompt_seconds", s.prompt_seconds},
          {"steps", s.steps},
          {"step_tokens", s.step_tokens},
          {"context_tokens", s.context_tokens},
          {"step_seconds", s.step_seconds},
          {"graphs", s.graphs},
          {"graph_steps", s.graph_steps}};
}

void check_outputs(const ChatArgs& args, const PromptFile& questions) {
  FileUse files;
  read_model(files, args.model);
  files.reads(args.batch);
  for (const BatchPrompt& prompt : questions.prompts) {
    for (const std::string& picture : prompt.images) files.reads(picture);
  }
  if (!args.out.empty()) files.writes("--out", args.out);
  if (!args.stats.empty()) files.writes("--stats", args.stats);
}

void answer_file(const ChatArgs& args) {
  const PromptFile questions = read_prompt_file(args.batch);
  check_outputs(args, questions);
  OrderedAnswers answers(questions.ids, args.out);
  ModelLoadOptions options = load_options(args.model);
  place_on_gpus(
      args.gpus,
      [&](const LoadedModel& unbound) {
        return Generator::batch_load(unbound, args.sampling, questions.prompts, args.batch_size);
      },
      options);
  const LoadedModel model = load_model(args.model.dir, options);
  const BatchStats stats =
      Generator(model, args.sampling, !args.no_graphs)
          .answer_batch(questions.prompts, args.batch_size,
                        [&](size_t number, const Answer& a) { answers.take(number, a); });
  answers.finish();
  log::info(
      strf("%lld answers: %lld tokens of prompts in %.2f s, then %lld tokens in %lld steps "
           "and %.2f s (%.1f tokens/s); cache %s",
           static_cast<long long>(stats.prompts), static_cast<long long>(stats.prompt_tokens),
           stats.prompt_seconds, static_cast<long long>(stats.step_tokens),
           static_cast<long long>(stats.steps), stats.step_seconds,
           stats.step_seconds > 0 ? double(stats.step_tokens) / stats.step_seconds : 0.0,
           human_bytes(double(stats.cache_bytes)).c_str()));
  if (!args.stats.empty()) write_file_atomic(args.stats, stats_json(stats).dump(2) + "\n");
  answers.check();
}

void run(ChatArgs args) {
  if (args.prompt) args.prompt = clean_text(*args.prompt, "--prompt");
  const SamplingConfig& s = args.sampling;
  check_sampling(s);
  if (s.temperature == 0 && (s.top_k != 0 || s.top_p != 1)) {
    log::warn(
        "--top-k and --top-p change nothing at --temperature 0: the likeliest token is taken");
  }
  if (!args.batch.empty()) return answer_file(args);
  ModelLoadOptions options = load_options(args.model);
  place_on_gpus(
      args.gpus,
      [&](const LoadedModel& unbound) {
        if (!args.prompt) return Generator::chat_load(unbound, s);
        const std::string question = with_pictures(*args.prompt, std::ssize(args.images));
        return Generator::batch_load(unbound, s, {{{{"human", question}}, args.images, "prompt"}},
                                     1);
      },
      options);
  const LoadedModel model = load_model(args.model.dir, options);
  Chat chat(model, args);
  for (const std::string& path : args.images) chat.add_picture(path);
  if (args.prompt) {
    chat.ask(*args.prompt);
  } else {
    converse(chat);
  }
}

void add_beam_options(CLI::App& command, SamplingConfig& sampling) {
  CLI::Option* beams =
      command
          .add_option("--beams", sampling.num_beams,
                      "Beam search over this many beams, as transformers' num_beams; 1: off")
          ->check(whole_number(1, 64))
          ->capture_default_str();
  command
      .add_option("--length-penalty", sampling.length_penalty,
                  "Beam search divides an answer's log probability by its length to this power")
      ->check(number(-10, 10))
      ->capture_default_str()
      ->needs(beams);
}

void add_batch_options(CLI::App& command, ChatArgs& args, const std::vector<CLI::Option*>& single) {
  CLI::Option* batch = command.add_option(
      "--batch", args.batch,
      "Answer a file of JSON lines {\"id\", \"prompt\", \"image\": path or list of paths}; writes "
      "lines {\"id\", \"answer\", \"stopped\"} in the same order, {\"id\", \"error\"} for a broken "
      "picture");
  for (CLI::Option* option : single) batch->excludes(option);
  command
      .add_option("--batch-size", args.batch_size,
                  "Questions answered at a time; with --beams they are answered one by one")
      ->check(whole_number(1, 65'535))
      ->capture_default_str()
      ->needs(batch);
  command.add_option("--out", args.out, "Write the answers there instead of to stdout")
      ->needs(batch);
  command.add_option("--stats", args.stats, "Write times and token counts there, as JSON")
      ->needs(batch);
}

}  // namespace

void add_chat(CLI::App& app) {
  auto args = std::make_shared<ChatArgs>();
  CLI::App* command = app.add_subcommand("chat", "Ask a model about pictures");
  add_model_options(*command, args->model);
  add_drop_path_option(*command, args->model);
  add_gpus_option(*command, args->gpus);
  CLI::Option* image =
      command->add_option("--image", args->images, "Picture (repeatable)")->allow_extra_args(false);
  CLI::Option* prompt = command->add_option("--prompt", args->prompt,
                                            "Ask this and end; else questions come from stdin");
  CLI::Option* trim =
      command
          ->add_option(
              "--trim", args->trim,
              "What becomes of a conversation that is too long: none (it is refused), or "
              "turns: its oldest questions without pictures are left out, as a warning says")
          ->check(CLI::IsMember({"none", "turns"}))
          ->capture_default_str();
  add_batch_options(*command, *args, {image, prompt, trim});
  command->add_option("--temperature", args->sampling.temperature, "0: greedy")
      ->check(number(0, 1e6))
      ->capture_default_str();
  command
      ->add_option("--top-p", args->sampling.top_p, "Sample from the likeliest tokens of this mass")
      ->check(number(0, 1))
      ->capture_default_str();
  command->add_option("--top-k", args->sampling.top_k, "Sample from this many tokens; 0: all")
      ->check(whole_number(0, INT32_MAX))
      ->capture_default_str();
  command
      ->add_option("--repetition-penalty", args->sampling.repetition_penalty,
                   "Divides the score of tokens of prompt and answer (multiplies negative scores); "
                   "1: off. Applies at temperature 0 too")
      ->check(number(0.01, 100))
      ->capture_default_str();
  add_beam_options(*command, args->sampling);
  command->add_flag("--no-graphs", args->no_graphs,
                    "On a GPU, launch the kernels of every step one by one instead of replaying "
                    "recorded CUDA graphs; answers are the same");
  command->add_option("--seed", args->sampling.seed, "Of sampling")
      ->check(seed_number())
      ->capture_default_str();
  command->add_option("--max-new-tokens", args->sampling.max_new_tokens, "Longest answer")
      ->check(whole_number(1, INT32_MAX))
      ->capture_default_str();
  command->footer(
      "Example:\n"
      "  mgm chat runs/tiny/model --image data/embedded/images/apple.png "
      "--prompt 'What is in the picture?'\n"
      "  mgm chat MODEL_DIR --image photo.jpg --temperature 0.7 --top-p 0.9 --seed 1\n"
      "  mgm chat MODEL_DIR --prompt 'Tell me a story.' --repetition-penalty 1.1\n"
      "  mgm chat MODEL_DIR --image photo.jpg --prompt 'What is this?' --beams 4\n"
      "  mgm chat MODEL_DIR --batch questions.jsonl --batch-size 16 --out answers.jsonl\n"
      "On stdin, one question per line; /image FILE adds a picture to the next question, /new "
      "starts\na new conversation.");
  command->callback([args] { run(*args); });
}

}  // namespace mgm::cli
