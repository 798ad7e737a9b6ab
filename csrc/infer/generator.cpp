#include "infer/generator.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/log.h"
#include "base/timer.h"
#include "data/pack.h"
#include "infer/beam_search.h"
#include "infer/row_decoder.h"

namespace mgm {
namespace {

// Prompts enter in passes of at most this many tokens (or of one prompt), so that memory for their
// activations does not grow with the batch.
constexpr int64_t kPromptTokens = 8192;

// A conversation that is still to come is taken to be this long: 2880 visual tokens and a good deal
// of text. GPUs chosen for it may have room for a longer one.
constexpr int64_t kConversation = 4096;

// What a call answers with.
struct Setup {
  const LoadedModel& model;
  const SamplingConfig& sampling;
  const std::vector<int32_t>& stop_ids;
  StepRecorder* recorder;
  uint64_t first_stream = 0;  // of the random numbers: prompt i draws from first_stream + i
};

struct Hooks {
  // Reads the pictures of a prompt, once; what is wrong with them, or "".
  std::function<std::string(size_t prompt)> read;
  // Visual tokens [N, tokens, H] of the pictures of these prompts, in order; undefined for none.
  std::function<at::Tensor(size_t first, size_t count)> visual;
  std::function<void(size_t prompt, int32_t id)> on_token;  // end tokens left out; may be empty
  std::function<void(size_t prompt, const Answer&)> on_answer;
};

// Tokens of the longest prompt and answer there can be.
int64_t longest(const std::vector<Prompt>& prompts) {
  int64_t tokens = 0;
  for (const Prompt& p : prompts) tokens = std::max(tokens, p.length + p.budget);
  return tokens;
}

RowDecoder make_rows(const Setup& setup, int64_t rows, const std::vector<Prompt>& prompts) {
  const MiniGemini& m = *setup.model.model;
  return {m.decoder(), rows, longest(prompts), at::TensorOptions(m.device()).dtype(m.dtype()),
          setup.recorder};
}

// Prompts first .. first + count - 1 become rows; logits [count, V] of what follows them.
at::Tensor enter(const LoadedModel& model, const std::vector<Prompt>& prompts, size_t first,
                 size_t count, const Hooks& hooks, const ForwardContext& ctx, RowDecoder& rows) {
  const MiniGemini& m = *model.model;
  std::vector<Sample> samples;
  for (size_t i = first; i < first + count; ++i) {
    samples.push_back(widen_markers(prompts[i].encoded, m.geometry().tokens()));
  }
  const Batch batch = pack(samples, 0, 0).to(m.device());
  return rows.add(m.splice(batch, hooks.visual(first, count), ctx), batch, ctx);
}

Answer finish(const Tokenizer& tokenizer, std::vector<int32_t> ids, bool stopped) {
  Answer out;
  out.ids = ids;
  out.stopped = stopped;
  if (stopped) ids.pop_back();
  const std::string text = tokenizer.decode(ids, /*skip_special=*/true);
  out.text = std::string(trim(text));
  return out;
}

// Whether a prompt can be answered; what cannot has its answer now.
bool readable(const Hooks& hooks, size_t prompt) {
  Answer failed;
  failed.error = hooks.read(prompt);
  if (failed.error.empty()) return true;
  hooks.on_answer(prompt, failed);
  return false;
}

// The prompts of one call on their way through the rows of a cache.
class BatchRun {
 public:
  BatchRun(const Setup& setup, const std::vector<Prompt>& prompts, int64_t rows, const Hooks& hooks)
      : model_(setup.model),
        first_stream_(setup.first_stream),
        stop_ids_(setup.stop_ids),
        prompts_(prompts),
        hooks_(hooks),
        rows_(make_rows(setup, rows, prompts)),
        sampler_(setup.sampling, rows, model_.tokenizer->vocab_size(),
                 model_.model->decoder().head_device()) {
    stats_.rows = rows;
    stats_.capacity = longest(prompts);
    stats_.cache_bytes = rows_.cache_bytes();
  }

  BatchStats run() {
    while (true) {
      if (const size_t count = admissible(); count > 0) {
        admit(count);
      } else if (!active_.empty()) {
        step();
      } else {
        break;
      }
    }
    stats_.graphs = rows_.graphs().recorded();
    stats_.graph_steps = rows_.graphs().replayed();
    return stats_;
  }

 private:
  struct Active {
    size_t prompt;
    std::vector<int32_t> ids;
  };

  // How many of the waiting prompts the next pass takes; those whose pictures are broken are passed
  // over.
  size_t admissible() {
    const auto free = static_cast<size_t>(rows_.free_rows());
    while (free > 0 && next_ < prompts_.size() && !readable(hooks_, next_)) ++next_;
    const size_t room = std::min(prompts_.size() - next_, free);
    int64_t tokens = 0;
    for (size_t i = 0; i < room; ++i) {
      tokens += prompts_[next_ + i].length;
      if (tokens > kPromptTokens) return std::max<size_t>(i, 1);
      if (i > 0 && !hooks_.read(next_ + i).empty()) return i;
    }
    return room;
  }

  void admit(size_t count) {
    const Timer timer;
    const auto first = static_cast<int64_t>(active_.size());
    const at::Tensor logits = enter(model_, prompts_, next_, count, hooks_, ctx_, rows_);
    for (size_t i = next_; i < next_ + count; ++i) {
      sampler_.add(prompts_[i].encoded.ids, first_stream_ + i);
      active_.push_back({i, {}});
      stats_.prompt_tokens += prompts_[i].length;
    }
    next_ += count;
    choose(first, logits);
    stats_.prompts += static_cast<int64_t>(count);
    ++stats_.prompt_passes;
    stats_.prompt_seconds += timer.seconds();
  }

  void step() {
    const Timer timer;
    for (const Active& a : active_) {
      stats_.context_tokens += prompts_[a.prompt].length + static_cast<int64_t>(a.ids.size());
    }
    stats_.step_tokens += rows_.size();
    ++stats_.steps;
    choose(0, rows_.step(ctx_));
    stats_.step_seconds += timer.seconds();
  }

  // The next tokens of the rows first, first + 1, ..., and the end of those that they end.
  void choose(int64_t first, const at::Tensor& logits_RV) {
    // Rows of the head beyond the tokenizer's vocabulary are padding: no text belongs to them.
    const RowSampler::Choice choice =
        sampler_.choose(first, logits_RV.narrow(1, 0, model_.tokenizer->vocab_size()));
    rows_.put(first, choice.ids_R);
    // From the last one down: what takes an ended row's place has had its turn.
    for (size_t i = choice.ids.size(); i-- > 0;) {
      const size_t row = static_cast<size_t>(first) + i;
      Active& a = active_[row];
      const int32_t id = choice.ids[i];
      a.ids.push_back(id);
      const bool stopped = std::find(stop_ids_.begin(), stop_ids_.end(), id) != stop_ids_.end();
      if (!stopped && hooks_.on_token) hooks_.on_token(a.prompt, id);
      const auto length = static_cast<int64_t>(a.ids.size());
      if (stopped || length == prompts_[a.prompt].budget) end(row, stopped);
    }
  }

  void end(size_t row, bool stopped) {
    const Active done = std::move(active_[row]);
    if (row + 1 < active_.size()) active_[row] = std::move(active_.back());
    active_.pop_back();
    rows_.remove(static_cast<int64_t>(row));
    sampler_.remove(static_cast<int64_t>(row));
    hooks_.on_answer(done.prompt, finish(*model_.tokenizer, done.ids, stopped));
  }

  const LoadedModel& model_;
  const uint64_t first_stream_;
  const std::vector<int32_t>& stop_ids_;
  const std::vector<Prompt>& prompts_;
  const Hooks& hooks_;
  DirectRunner runner_;
  const ForwardContext ctx_{runner_};
  RowDecoder rows_;
  RowSampler sampler_;
  std::vector<Active> active_;  // of each row in use
  size_t next_ = 0;             // the first prompt that waits
  BatchStats stats_;
};

// One prompt after another, the rows of the cache being the beams of one.
BatchStats run_beams(const Setup& setup, const std::vector<Prompt>& prompts, const Hooks& hooks) {
  const LoadedModel& model = setup.model;
  const SamplingConfig& sampling = setup.sampling;
  BeamConfig config;
  config.num_beams = sampling.num_beams;
  config.length_penalty = sampling.length_penalty;
  config.repetition_penalty = sampling.repetition_penalty;
  config.stop_ids = setup.stop_ids;
  config.vocabulary = model.tokenizer->vocab_size();
  DirectRunner runner;
  const ForwardContext ctx{runner};
  RowDecoder rows = make_rows(setup, config.num_beams, prompts);
  BatchStats stats;
  stats.rows = config.num_beams;
  stats.capacity = longest(prompts);
  stats.cache_bytes = rows.cache_bytes();
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Prompt& prompt = prompts[i];
    Timer timer;
    if (!readable(hooks, i)) continue;
    const at::Tensor logits = enter(model, prompts, i, 1, hooks, ctx, rows);
    if (logits.is_cuda()) logits.cpu();  // the prompt's time ends here
    stats.prompt_seconds += timer.seconds();
    timer.reset();
    const BeamResult result =
        beam_search(rows, logits, prompt.encoded.ids, prompt.budget, config, ctx);
    stats.step_seconds += timer.seconds();
    ++stats.prompts;
    ++stats.prompt_passes;
    stats.prompt_tokens += prompt.length;
    stats.steps += result.steps;
    stats.step_tokens += static_cast<int64_t>(result.ids.size()) - 1;
    stats.context_tokens +=
        config.num_beams * (result.steps * prompt.length + result.steps * (result.steps + 1) / 2);
    hooks.on_answer(i, finish(*model.tokenizer, result.ids, result.stopped));
  }
  stats.graphs = rows.graphs().recorded();
  stats.graph_steps = rows.graphs().replayed();
  return stats;
}

// Sequences in the cache.
int64_t cache_rows(const SamplingConfig& sampling, int64_t batch_size, size_t prompts) {
  if (sampling.num_beams > 1) return sampling.num_beams;
  return std::min(batch_size, static_cast<int64_t>(prompts));
}

std::vector<Prompt> encode_all(const PromptEncoder& encoder,
                               const std::vector<BatchPrompt>& prompts) {
  std::vector<Prompt> out;
  for (const BatchPrompt& p : prompts) {
    out.push_back(encoder.encode(p.turns, static_cast<int64_t>(p.images.size()), p.where));
  }
  return out;
}

// Pictures from when their prompt's turn comes until they are encoded.
class PictureReader {
 public:
  PictureReader(const std::vector<BatchPrompt>& prompts, const ModelDescription& description)
      : prompts_(prompts), description_(description) {}

  // What is wrong with a prompt's pictures, or "".
  std::string read(size_t prompt) {
    const auto [it, fresh] = read_.try_emplace(prompt);
    Pictures& p = it->second;
    if (!fresh) return p.error;
    try {
      for (const std::string& path : prompts_[prompt].images) {
        p.pictures.push_back(load_picture(path, description_));
      }
    } catch (const DataError& e) {
      p.pictures.clear();
      p.error = cat(prompts_[prompt].where, ": ", e.what());
    }
    return p.error;
  }

  std::vector<Picture> take(size_t prompt) {
    return std::move(read_.extract(prompt).mapped().pictures);
  }

 private:
  struct Pictures {
    std::vector<Picture> pictures;
    std::string error;
  };
  const std::vector<BatchPrompt>& prompts_;
  const ModelDescription& description_;
  std::map<size_t, Pictures> read_;
};

BatchStats run_prompts(const Setup& setup, const std::vector<Prompt>& prompts, int64_t batch_size,
                       const Hooks& hooks) {
  if (setup.sampling.num_beams > 1) return run_beams(setup, prompts, hooks);
  const int64_t rows = cache_rows(setup.sampling, batch_size, prompts.size());
  return BatchRun(setup, prompts, rows, hooks).run();
}

// Null where steps are not to be recorded, or cannot be.
std::unique_ptr<StepRecorder> recorder_for(const MiniGemini& model, bool wanted) {
  if (!wanted || !model.device().is_cuda()) return nullptr;
  const std::string why_not = unrecordable(model.decoder(), model.dtype());
  if (why_not.empty()) return make_graph_recorder(model.device());
  log::info("this model is decoded without CUDA graphs: " + why_not);
  return nullptr;
}

}  // namespace

Generator::Generator(const LoadedModel& model, const SamplingConfig& sampling, bool graphs)
    : model_(model),
      sampling_(sampling),
      encoder_(model, sampling.max_new_tokens),
      recorder_(recorder_for(*model.model, graphs)) {
  check_sampling(sampling);
}

Answer Generator::answer(const std::vector<Turn>& turns, const at::Tensor& visual_NTH,
                         const std::function<void(const std::string&)>& on_text) const {
  const at::NoGradGuard no_grad;
  const int64_t pictures = visual_NTH.defined() ? visual_NTH.size(0) : 0;
  const std::vector<Prompt> prompts = {encoder_.encode(turns, pictures, "prompt")};
  StreamDecoder stream(*model_.tokenizer);
  const auto hand_out = [&](const std::string& piece) {
    if (on_text && !piece.empty()) on_text(piece);
  };
  Answer out;
  Hooks hooks;
  hooks.read = [](size_t) { return std::string(); };
  hooks.visual = [&](size_t, size_t) { return visual_NTH; };
  if (on_text) hooks.on_token = [&](size_t, int32_t id) { hand_out(stream.push(id)); };
  hooks.on_answer = [&](size_t, const Answer& answer) { out = answer; };
  const uint64_t answers_before = turns.size() / 2;  // each answer draws numbers of its own
  run_prompts({model_, sampling_, encoder_.stop_ids(), recorder_.get(), answers_before}, prompts, 1,
              hooks);
  hand_out(sampling_.num_beams > 1 ? out.text : stream.finish());
  return out;
}

BatchStats Generator::answer_batch(
    const std::vector<BatchPrompt>& prompts, int64_t batch_size,
    const std::function<void(size_t prompt, const Answer& answer)>& on_answer) const {
  MGM_CHECK(batch_size > 0, "a batch of ", batch_size);
  if (prompts.empty()) return {};
  const at::NoGradGuard no_grad;
  const std::vector<Prompt> encoded = encode_all(encoder_, prompts);
  DirectRunner runner;
  Hooks hooks;
  PictureReader reader(prompts, model_.description);
  hooks.read = [&](size_t prompt) { return reader.read(prompt); };
  hooks.visual = [&](size_t first, size_t count) {
    std::vector<Picture> pictures;
    std::vector<int64_t> numbers;
    for (size_t i = first; i < first + count; ++i) {
      int64_t number = 0;
      for (Picture& picture : reader.take(i)) {
        pictures.push_back(std::move(picture));
        numbers.push_back(number++);
      }
    }
    return encode_pictures(model_, pictures, model_.context(runner), numbers);
  };
  hooks.on_answer = on_answer;
  return run_prompts({model_, sampling_, encoder_.stop_ids(), recorder_.get()}, encoded, batch_size,
                     hooks);
}

DecodeLoad Generator::batch_load(const LoadedModel& model, const SamplingConfig& sampling,
                                 const std::vector<BatchPrompt>& prompts, int64_t batch_size) {
  const std::vector<Prompt> encoded =
      encode_all(PromptEncoder(model, sampling.max_new_tokens), prompts);
  DecodeLoad out;
  out.rows = cache_rows(sampling, batch_size, prompts.size());
  out.capacity = longest(encoded);
  int64_t all = 0, most = 0;
  for (const Prompt& p : encoded) {
    all += p.length;
    most = std::max(most, p.length);
  }
  out.prompt_tokens = sampling.num_beams > 1 ? most : std::min(all, std::max(most, kPromptTokens));
  return out;
}

DecodeLoad Generator::chat_load(const LoadedModel& model, const SamplingConfig& sampling) {
  const int64_t tokens = std::min(kConversation, model.description.model.llm.max_positions);
  return {cache_rows(sampling, 1, 1), tokens, tokens};
}

}  // namespace mgm
