#include "infer/prompt.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "base/error.h"
#include "base/fs.h"
#include "base/log.h"
#include "data/pack.h"
#include "image/canvas.h"
#include "image/decode.h"

namespace mgm {
namespace {

bool has_marker(const Turn& turn) { return turn.value.find(kImageMarker) != std::string::npos; }

// Markers for pictures that no turn mentions.
void place_markers(std::vector<Turn>& turns, int64_t pictures) {
  if (turns.empty() || std::any_of(turns.begin(), turns.end(), has_marker)) return;
  std::string markers;
  for (int64_t i = 0; i < pictures; ++i) markers += std::string(kImageMarker) + "\n";
  turns.front().value = markers + turns.front().value;
}

}  // namespace

Picture load_picture(const std::string& path, const ModelDescription& description) {
  const RgbImage image = decode_rgb(read_file(path), path);
  const ImageConfig& config = description.image;
  return {path, image.width, image.height,
          make_canvas(image, config.aspect, config.hr_size, pad_colour(config.mean))};
}

at::Tensor encode_pictures(const LoadedModel& model, const std::vector<Picture>& pictures,
                           const ForwardContext& ctx, const std::vector<int64_t>& numbers) {
  if (pictures.empty()) return {};
  Sample sample;
  sample.pictures = pictures;
  Batch batch = pack({sample}, 0, 0).to(model.model->device());
  MGM_CHECK(numbers.empty() || numbers.size() == pictures.size(), numbers.size(), " numbers");
  for (size_t i = 0; i < numbers.size(); ++i) batch.image_keys[i] = image_key(0, 0, numbers[i]);
  const at::NoGradGuard no_grad;
  return model.model->encode_images(batch.images, batch.image_keys, ctx);
}

Turn answer_turn(const std::string& answer) {
  if (answer.find(kImageMarker) == answer.npos) return {"gpt", answer};
  log::warn(cat("the answer has ", kImageMarker, " in it, which stands for a picture; the ",
                "conversation goes on with < image> in its place"));
  return {"gpt", replace_all(answer, kImageMarker, "< image>")};
}

PromptEncoder::PromptEncoder(const LoadedModel& model, int64_t max_new_tokens)
    : model_(model),
      max_new_tokens_(max_new_tokens),
      encoder_(load_template(model.description.text.template_name), *model.tokenizer,
               MarkerPolicy::kError),
      stop_ids_(encoder_.stop_ids()) {
  stop_ids_.insert(stop_ids_.end(), model.stop_ids.begin(), model.stop_ids.end());
  std::sort(stop_ids_.begin(), stop_ids_.end());
  stop_ids_.erase(std::unique(stop_ids_.begin(), stop_ids_.end()), stop_ids_.end());
  const ConversationTemplate& format = encoder_.conversation();
  for (const std::string& token : format.stop) {
    if (model.tokenizer->token_id(token) >= 0) continue;
    log::warn(cat("the tokenizer has no token '", token, "', which ends answers in template ",
                  format.name, ": is it the template of this model?"));
  }
}

// Rows of the token stream.
int64_t PromptEncoder::length(const Encoded& encoded) const {
  const int64_t text = static_cast<int64_t>(encoded.ids.size()) - encoded.images;
  return text + encoded.images * model_.model->geometry().tokens();
}

Prompt PromptEncoder::encode(std::vector<Turn> turns, int64_t pictures,
                             const std::string& where) const {
  place_markers(turns, pictures);
  Prompt out;
  out.encoded = encoder_.encode_prompt(turns, pictures, where);
  out.length = length(out.encoded);
  const int64_t limit = model_.description.model.llm.max_positions;
  if (out.length >= limit) {
    throw DataError(where, ": ", out.length, " tokens (",
                    out.encoded.images * model_.model->geometry().tokens(),
                    " visual); the model takes ", limit, ", the answer included: shorten it",
                    turns.size() > 1 ? ", start a new conversation, or leave out its oldest turns "
                                       "(--trim turns)"
                                     : "");
  }
  out.budget = std::min(max_new_tokens_, limit - out.length);
  return out;
}

TrimmedTurns PromptEncoder::trim(std::vector<Turn> turns, int64_t pictures,
                                 const std::string& where) const {
  place_markers(turns, pictures);
  const int64_t limit = model_.description.model.llm.max_positions;
  const int64_t room = std::min(max_new_tokens_, limit / 4);
  const auto measure = [&] { return length(encoder_.encode_prompt(turns, pictures, where)); };
  TrimmedTurns out;
  out.tokens_before = out.tokens_after = measure();
  while (out.tokens_after + room > limit) {
    size_t oldest = 0;
    const auto has_picture = [&] {
      return has_marker(turns[oldest]) || has_marker(turns[oldest + 1]);
    };
    while (oldest + 1 < turns.size() && has_picture()) oldest += 2;
    if (oldest + 1 >= turns.size()) break;
    const auto first = turns.begin() + static_cast<std::ptrdiff_t>(oldest);
    turns.erase(first, first + 2);
    ++out.dropped;
    out.tokens_after = measure();
  }
  if (out.tokens_after >= limit) {
    throw DataError(where, ": ", out.tokens_after, " tokens",
                    out.dropped > 0 ? cat(", of ", out.tokens_before, " with the ", out.dropped,
                                          " oldest questions")
                                    : "",
                    "; the model takes ", limit, ", the answer included. The last question and ",
                    "turns with pictures stay: start a new conversation");
  }
  out.turns = std::move(turns);
  return out;
}

}  // namespace mgm
