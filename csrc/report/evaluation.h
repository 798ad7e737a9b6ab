// How many questions of an annotation file a model answers exactly, as it is and with one of its
// inputs spoiled.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "infer/generator.h"

namespace mgm {

// One answer turn of a record; `history` are the turns before it, the last one being the question.
struct Question {
  std::string id;                   // of the record
  std::vector<std::string> images;  // paths
  std::vector<Turn> history;
  std::string text;  // the question without image markers
  std::string expected;
};

// Every answer turn of a LLaVA JSON file. Throws DataError.
std::vector<Question> read_questions(const std::string& annotations, const std::string& images);

enum class Spoil {
  kNothing,
  kPermutedPictures,  // every picture is exchanged for another one of the set
  kZeroHr,            // the HR feature maps are zeros
};

struct Accuracy {
  int64_t right = 0, total = 0;
  double share() const { return total > 0 ? double(right) / double(total) : 0; }
};

struct Evaluation {
  std::vector<std::string> answers;  // one per question, greedy
  Accuracy all;
  std::map<std::string, Accuracy> by_question;  // wording, its X in "a X" left in
};

// `seed` fixes the exchange of pictures. Exact match of the trimmed text.
Evaluation evaluate(const LoadedModel& model, const std::vector<Question>& questions, Spoil spoil,
                    uint64_t seed);

// How many pictures the questions are about; with fewer than two there is nothing to exchange.
size_t count_pictures(const std::vector<Question>& questions);

// names -> names without a fixed point: a random single cycle. One name alone stays where it is.
std::map<std::string, std::string> exchange_pictures(const std::vector<std::string>& names,
                                                     uint64_t seed);

}  // namespace mgm
