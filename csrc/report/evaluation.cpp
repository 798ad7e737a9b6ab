#include "report/evaluation.h"

#include <ATen/ATen.h>

#include <set>

#include "base/error.h"
#include "base/rng.h"
#include "data/annotations.h"

namespace mgm {
namespace {

constexpr int64_t kLongestAnswer = 64;  // tokens

std::string without_markers(const std::string& text) {
  return std::string(trim(replace_all(text, std::string(kImageMarker), "")));
}

// What a question needs of its record; the generator would fail later and name no record.
void check_record(const Record& record, const std::string& where,
                  const std::vector<std::string>& images) {
  const std::vector<Turn>& turns = record.turns;
  if (turns.size() % 2 != 0) {
    throw DataError(where, ": ", turns.size(), " turns; every question needs an answer");
  }
  int64_t markers = 0, markers_first = 0;
  for (size_t t = 0; t < turns.size(); ++t) {
    const char* expected = t % 2 == 0 ? "human" : "gpt";
    if (turns[t].from != expected) {
      throw DataError(where, ": turn ", t, " is from '", turns[t].from, "', expected '", expected,
                      "': questions and answers must alternate, a question first");
    }
    if (t % 2 == 1 && trim(turns[t].value).empty()) {
      throw DataError(where, ": turn ", t, " is an empty answer: there is nothing to compare with");
    }
    for (size_t at = 0; (at = turns[t].value.find(kImageMarker, at)) != std::string::npos;
         at += kImageMarker.size()) {
      ++markers;
      markers_first += t == 0 ? 1 : 0;
    }
  }
  const auto count = static_cast<int64_t>(images.size());
  if (markers != markers_first || (markers != 0 && markers != count)) {
    throw DataError(where, ": ", markers, " image marker(s), ", markers_first,
                    " of them in the first turn, and ", count,
                    " picture(s): the first turn needs one marker per picture");
  }
  for (const std::string& path : images) {
    if (!fs::is_regular_file(path)) throw DataError(where, ": no picture at ", path);
  }
}

// Visual tokens of each picture, encoded once.
class PictureCache {
 public:
  PictureCache(const LoadedModel& model, const ForwardContext& ctx) : model_(model), ctx_(ctx) {}

  at::Tensor get(const std::string& path) {
    const auto it = tokens_.find(path);
    if (it != tokens_.end()) return it->second;
    const at::Tensor tokens =
        encode_pictures(model_, {load_picture(path, model_.description)}, ctx_);
    return tokens_.emplace(path, tokens).first->second;
  }

 private:
  const LoadedModel& model_;
  const ForwardContext& ctx_;
  std::map<std::string, at::Tensor> tokens_;
};

}  // namespace

std::vector<Question> read_questions(const std::string& annotations, const std::string& images) {
  DataSource source;
  source.annotations = annotations;
  source.images = images;
  const AnnotationIndex index({source});
  std::vector<Question> out;
  for (int64_t i = 0; i < index.size(); ++i) {
    const Record record = index.record(i);
    Question question;
    question.id = record.id;
    for (const std::string& name : record.images) {
      question.images.push_back((fs::path(images) / name).string());
    }
    check_record(record, index.where(i), question.images);
    for (size_t t = 0; t < record.turns.size(); t += 2) {
      question.history.push_back(record.turns[t]);
      question.text = without_markers(record.turns[t].value);
      question.expected = std::string(trim(record.turns[t + 1].value));
      out.push_back(question);
      question.history.push_back(record.turns[t + 1]);
    }
  }
  if (out.empty()) throw DataError(annotations, ": holds no question");
  return out;
}

std::map<std::string, std::string> exchange_pictures(const std::vector<std::string>& names,
                                                     uint64_t seed) {
  const auto count = static_cast<int64_t>(names.size());
  const std::vector<int64_t> order = permutation(count, rng_key(seed, "exchange pictures"), 0);
  std::map<std::string, std::string> out;
  for (size_t i = 0; i < order.size(); ++i) {
    out[names[size_t(order[i])]] = names[size_t(order[(i + 1) % order.size()])];
  }
  return out;
}

size_t count_pictures(const std::vector<Question>& questions) {
  std::set<std::string> paths;
  for (const Question& question : questions) {
    paths.insert(question.images.begin(), question.images.end());
  }
  return paths.size();
}

Evaluation evaluate(const LoadedModel& model, const std::vector<Question>& questions, Spoil spoil,
                    uint64_t seed) {
  std::set<std::string> paths;
  for (const Question& question : questions) {
    paths.insert(question.images.begin(), question.images.end());
  }
  std::map<std::string, std::string> shown;
  if (spoil == Spoil::kPermutedPictures)
    shown = exchange_pictures({paths.begin(), paths.end()}, seed);

  DirectRunner runner;
  ForwardContext ctx{runner};
  ctx.zero_hr = spoil == Spoil::kZeroHr;
  PictureCache cache(model, ctx);
  SamplingConfig greedy;
  greedy.max_new_tokens = kLongestAnswer;
  const Generator generator(model, greedy);
  Evaluation out;
  for (const Question& question : questions) {
    std::vector<at::Tensor> visual;
    for (const std::string& path : question.images) {
      visual.push_back(cache.get(shown.empty() ? path : shown.at(path)));
    }
    const Answer answer =
        generator.answer(question.history, visual.empty() ? at::Tensor() : at::cat(visual));
    const bool right = answer.text == question.expected;
    out.answers.push_back(answer.text);
    for (Accuracy* accuracy : {&out.all, &out.by_question[question.text]}) {
      accuracy->right += right ? 1 : 0;
      ++accuracy->total;
    }
  }
  return out;
}

}  // namespace mgm
