// From a record to what the model eats: token ids with room for the visual tokens, labels, and
// uint8 canvases. Every check on a single sample happens here.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "config/image_geometry.h"
#include "config/run_config.h"
#include "data/annotations.h"
#include "data/problem.h"
#include "image/rgb_image.h"
#include "text/conversation.h"

namespace mgm {

struct Picture {
  std::string path;               // the file that was read
  int64_t width = 0, height = 0;  // pixels, of the file
  RgbImage canvas;                // hr_size x hr_size
};

struct Sample {
  int64_t index = 0;
  std::string id;
  // One entry per row of the token stream. Every picture takes geometry.tokens() rows, marked
  // kImageTokenIndex; rows without a target are kIgnoreIndex in labels (not shifted).
  std::vector<int64_t> ids;
  std::vector<int64_t> labels;
  std::vector<Picture> pictures;
  int64_t targets = 0;  // labels that a row predicts
  int64_t collapsed_markers = 0;
  int64_t rewritten_paths = 0;
  int64_t straddling_tokens = 0;  // text of prompt and answer in one: not supervised
};

// The rows of an encoded conversation: every image marker widened to `tokens_per_image` rows.
// Index, id and pictures are left to the caller.
Sample widen_markers(const Encoded& encoded, int64_t tokens_per_image);

using SampleResult = std::variant<Sample, Problem>;

// Where the language model comes from: model.path, else model.llm.path; may be empty.
std::string llm_path(const ModelConfig& model);

// Where the tokenizer of a run is: text.tokenizer, or the directory of the model. Throws
// ConfigError.
std::string tokenizer_path(const RunConfig& config);

class SampleBuilder {
 public:
  // `index` and `tokenizer` must outlive the builder. Throws ConfigError (template, geometry, a
  // tokenizer with more tokens than model.llm.vocab_size) and DataError (an image folder that is
  // not there).
  SampleBuilder(const RunConfig& config, const AnnotationIndex& index, const Tokenizer& tokenizer);

  // Reads, encodes and decodes one sample. Thread-safe.
  SampleResult build(int64_t index) const;

  const AnnotationIndex& annotations() const { return index_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  const ImageGeometry& geometry() const { return geometry_; }

 private:
  void check_tokenizer() const;
  void check_image_folders() const;
  Sample encode(const Record& record) const;
  void load_pictures(const Record& record, Sample& sample) const;

  const ImageConfig image_;
  const TextConfig text_;
  const int64_t vocab_size_;
  const AnnotationIndex& index_;
  const Tokenizer& tokenizer_;
  ImageGeometry geometry_;
  Rgb pad_colour_;
  ConversationEncoder encoder_;
};

}  // namespace mgm
