#include "data/sample.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "image/canvas.h"
#include "image/decode.h"
#include "text/tokenizer.h"
#include "types/batch.h"

namespace mgm {
namespace {

// How a check says no; build() turns it into a Problem.
struct Rejected {
  ProblemKind kind;
  std::string message;
};

int64_t count_markers(std::string_view text) {
  int64_t count = 0;
  for (size_t at = text.find(kImageMarker); at != text.npos; at = text.find(kImageMarker, at + 1))
    ++count;
  return count;
}

void check_markers(const Record& record, MarkerPolicy policy) {
  int64_t markers = 0;
  for (const Turn& turn : record.turns) {
    const int64_t here = count_markers(turn.value);
    markers += policy == MarkerPolicy::kCollapse ? std::min<int64_t>(here, 1) : here;
  }
  const auto pictures = static_cast<int64_t>(record.images.size());
  if (markers == pictures) return;
  throw Rejected{
      ProblemKind::kMarkers,
      cat(markers, " ", kImageMarker, " markers",
          policy == MarkerPolicy::kCollapse ? " (one per message)" : "", " in the text, ", pictures,
          pictures == 1 ? " picture" : " pictures", " in 'image'; each picture needs one marker")};
}

ImageGeometry geometry_of(const RunConfig& config) {
  const auto geometry =
      make_geometry(config.image, config.model.vision_tower, config.model.hr_encoder);
  if (const auto* problem = std::get_if<ConfigProblem>(&geometry)) {
    throw ConfigError(problem->key, ": ", problem->message);
  }
  return std::get<ImageGeometry>(geometry);
}

struct FoundImage {
  fs::path path;
  bool rewritten = false;
};

FoundImage find_image(const DataSource& source, const std::string& name) {
  const fs::path folder = source.images;
  std::error_code ignored;
  if (fs::exists(folder / name, ignored)) return {folder / name, false};
  std::vector<std::string> tried = {(folder / name).string()};
  for (const PathRewrite& rewrite : source.rewrites) {
    if (name.find(rewrite.match) == name.npos) continue;
    const std::string other = replace_all(name, rewrite.from, rewrite.to);
    if (other == name) continue;
    if (fs::exists(folder / other, ignored)) return {folder / other, true};
    tried.push_back((folder / other).string());
  }
  throw Rejected{ProblemKind::kMissingImage, cat(join(tried, ", "), ": no such file")};
}

}  // namespace

std::string llm_path(const ModelConfig& model) {
  return model.path.empty() ? model.llm.path : model.path;
}

std::string tokenizer_path(const RunConfig& config) {
  if (!config.text.tokenizer.empty()) return config.text.tokenizer;
  const std::string model = llm_path(config.model);
  if (model.empty()) {
    throw ConfigError(
        "text.tokenizer: is not set, and neither model.path nor model.llm.path names a ",
        "directory that holds a tokenizer");
  }
  return model;
}

Sample widen_markers(const Encoded& encoded, int64_t tokens_per_image) {
  Sample sample;
  sample.collapsed_markers = encoded.collapsed_markers;
  sample.straddling_tokens = encoded.straddling;
  const auto visual = static_cast<size_t>(tokens_per_image);
  for (size_t t = 0; t < encoded.ids.size(); ++t) {
    const int64_t id = encoded.ids[t];
    sample.ids.insert(sample.ids.end(), id == kImageTokenIndex ? visual : 1, id);
    sample.labels.resize(sample.ids.size(), kIgnoreIndex);
    if (id == kImageTokenIndex || t >= encoded.labels.size()) continue;
    sample.labels.back() = encoded.labels[t];
    if (t > 0 && encoded.labels[t] != kIgnoreIndex) ++sample.targets;
  }
  return sample;
}

SampleBuilder::SampleBuilder(const RunConfig& config, const AnnotationIndex& index,
                             const Tokenizer& tokenizer)
    : image_(config.image),
      text_(config.text),
      vocab_size_(config.model.llm.vocab_size),
      index_(index),
      tokenizer_(tokenizer),
      geometry_(geometry_of(config)),
      pad_colour_(pad_colour(config.image.mean)),
      encoder_(load_template(config.text.template_name), tokenizer, config.text.markers) {
  check_tokenizer();
  check_image_folders();
}

void SampleBuilder::check_tokenizer() const {
  const int64_t tokens = tokenizer_.vocab_size();
  if (tokens > vocab_size_) {
    throw ConfigError("text.tokenizer has ", tokens, " tokens, model.llm.vocab_size is ",
                      vocab_size_, ": ids from ", vocab_size_,
                      " on have no embedding. Use the tokenizer of this language model, or set ",
                      "model.llm.vocab_size to ", tokens, " or more.");
  }
  // Embeddings are often padded to a round size; much more than that is another vocabulary.
  if (vocab_size_ - tokens >= std::max<int64_t>(1024, vocab_size_ / 10)) {
    log::warn(cat("text.tokenizer has ", tokens, " tokens, model.llm.vocab_size is ", vocab_size_,
                  ": is it the tokenizer of this language model?"));
  }
}

void SampleBuilder::check_image_folders() const {
  const DataSource* checked = nullptr;
  for (int64_t i = 0; i < index_.size(); ++i) {
    const DataSource& source = index_.source(i);
    if (&source == checked || index_.summary(i).images == 0) continue;
    checked = &source;
    if (!source.images.empty() && !fs::is_directory(source.images)) {
      throw DataError("data.sources: the image folder ", source.images, " of ", source.annotations,
                      " does not exist (first needed by record ", i, "). Relative paths start at ",
                      "the current folder, ", fs::current_path().string(), ".");
    }
  }
}

SampleResult SampleBuilder::build(int64_t index) const {
  Problem problem;
  problem.index = index;
  problem.where = index_.where(index);
  Record record;
  try {
    record = index_.record(index);
  } catch (const DataError& e) {
    problem.kind = ProblemKind::kRecord;
    problem.message = e.what();
    return problem;
  }
  problem.id = record.id;
  try {
    Sample sample = encode(record);
    load_pictures(record, sample);
    return sample;
  } catch (const Rejected& rejected) {
    problem.kind = rejected.kind;
    problem.message = rejected.message;
    return problem;
  }
}

// The text, with its markers widened to the visual tokens.
Sample SampleBuilder::encode(const Record& record) const {
  check_markers(record, text_.markers);
  Encoded encoded;
  try {
    encoded =
        encoder_.encode_training(record.turns, static_cast<int64_t>(record.images.size()), "");
  } catch (const DataError& e) {  // ": what"; the Problem says where
    throw Rejected{ProblemKind::kConversation, std::string(e.what()).substr(2)};
  }
  for (const int32_t id : encoded.ids) {
    MGM_CHECK(id == kImageTokenIndex || (id >= 0 && id < vocab_size_), "token id ", id);
  }
  Sample sample = widen_markers(encoded, geometry_.tokens());
  sample.index = record.index;
  sample.id = record.id;
  if (sample.targets == 0) {
    throw Rejected{ProblemKind::kNoTarget, "no token of this conversation is supervised"};
  }
  const auto tokens = static_cast<int64_t>(sample.ids.size());
  const int64_t images = static_cast<int64_t>(record.images.size()) * geometry_.tokens();
  if (tokens > text_.max_length) {
    throw Rejected{ProblemKind::kTooLong,
                   cat(tokens, " tokens (", tokens - images, " of text, ", images, " visual) are ",
                       tokens - text_.max_length, " above text.max_length ", text_.max_length,
                       "; shorten it, or raise text.max_length")};
  }
  return sample;
}

void SampleBuilder::load_pictures(const Record& record, Sample& sample) const {
  for (const std::string& name : record.images) {
    const FoundImage found = find_image(index_.source(record.index), name);
    sample.rewritten_paths += found.rewritten ? 1 : 0;
    std::string bytes;
    try {
      bytes = read_file(found.path);
    } catch (const DataError& e) {
      throw Rejected{ProblemKind::kMissingImage, e.what()};
    }
    try {
      const RgbImage picture = decode_rgb(bytes, found.path.string());
      sample.pictures.push_back(
          {found.path.string(), picture.width, picture.height,
           make_canvas(picture, image_.aspect, geometry_.hr_size, pad_colour_)});
    } catch (const DataError& e) {
      throw Rejected{ProblemKind::kBrokenImage, e.what()};
    }
  }
}

}  // namespace mgm
