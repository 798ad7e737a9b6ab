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
                           const ForwardContext& ctx) {
  if (pictures.empty()) return {};
  Sample sample;
  sample.pictures = pictures;
  const Batch batch = pack({sample}, 0, 0).to(model.model->device());
  const at::NoGradGuard no_grad;
  return model.model->encode_images(batch.images, batch.image_keys, ctx);
}

PromptEncoder::PromptEncoder(const LoadedModel& model, int64_t max_new_tokens)
    : model_(model),
      max_new_tokens_(max_new_tokens),
      encoder_(load_template(model.description.text.template_name), *model.tokenizer,
               MarkerPolicy::kError),
      stop_ids_(encoder_.stop_ids()) {
  const ConversationTemplate& format = encoder_.conversation();
  for (const std::string& token : format.stop) {
    if (model.tokenizer->token_id(token) >= 0) continue;
    log::warn(cat("the tokenizer has no token '", token, "', which ends answers in template ",
                  format.name, ": is it the template of this model?"));
  }
}

Prompt PromptEncoder::encode(std::vector<Turn> turns, int64_t pictures,
                             const std::string& where) const {
  place_markers(turns, pictures);
  Prompt out;
  out.encoded = encoder_.encode_prompt(turns, pictures, where);
  const int64_t visual = out.encoded.images * model_.model->geometry().tokens();
  const int64_t limit = model_.description.model.llm.max_positions;
  out.length = static_cast<int64_t>(out.encoded.ids.size()) - out.encoded.images + visual;
  if (out.length >= limit) {
    throw DataError(where, ": ", out.length, " tokens (", visual, " visual); the model takes ",
                    limit, ", the answer included: shorten it, or start a new conversation");
  }
  out.budget = std::min(max_new_tokens_, limit - out.length);
  return out;
}

}  // namespace mgm
