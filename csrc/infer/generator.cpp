#include "infer/generator.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "base/error.h"
#include "base/fs.h"
#include "data/pack.h"
#include "image/canvas.h"
#include "image/decode.h"

namespace mgm {
namespace {

// A batch of one token at `position`.
Batch one_token(int32_t id, int64_t position, at::Device device) {
  Sample sample;
  sample.ids = {id};
  sample.labels = {kIgnoreIndex};
  Batch batch = pack({sample}, 0, 0).to(device);
  batch.positions.fill_(position);
  return batch;
}

// Markers for pictures that the first question does not mention.
void place_markers(std::vector<Turn>& turns, int64_t pictures) {
  if (turns.empty() || pictures == 0) return;
  for (const Turn& turn : turns) {
    if (turn.value.find(kImageMarker) != turn.value.npos) return;
  }
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

Generator::Generator(const LoadedModel& model, const SamplingConfig& sampling)
    : model_(model),
      sampling_(sampling),
      encoder_(load_template(model.description.text.template_name), *model.tokenizer,
               MarkerPolicy::kError) {}

Answer Generator::answer(std::vector<Turn> turns, const at::Tensor& visual_NTH,
                         const std::function<void(const std::string&)>& on_text) const {
  const at::NoGradGuard no_grad;
  const MiniGemini& model = *model_.model;
  const int64_t pictures = visual_NTH.defined() ? visual_NTH.size(0) : 0;
  place_markers(turns, pictures);
  const Encoded encoded = encoder_.encode_prompt(turns, pictures, "prompt");
  const Batch prompt =
      pack({widen_markers(encoded, model.geometry().tokens())}, 0, 0).to(model.device());
  const int64_t length = prompt.seq.total();
  const int64_t limit = model_.description.model.llm.max_positions;
  if (length >= limit) {
    throw DataError("the prompt has ", length, " tokens (", prompt.image_rows.size(0),
                    " visual); the model takes ", limit, ": start a new conversation");
  }
  const int64_t budget = std::min(sampling_.max_new_tokens, limit - length);

  DirectRunner runner;
  const ForwardContext ctx{runner};
  const Decoder& decoder = model.decoder();
  KvCache cache =
      decoder.make_cache(length + budget, at::TensorOptions(model.device()).dtype(model.dtype()));
  const std::vector<int32_t> stops = encoder_.stop_ids();
  // Rows of the head beyond the tokenizer's vocabulary are padding: no text belongs to them.
  const int64_t vocabulary = model_.tokenizer->vocab_size();
  RowSampler sampler(sampling_, 1, vocabulary, model.device());
  sampler.add(encoded.ids, /*stream=*/0);
  StreamDecoder stream(*model_.tokenizer);
  Answer out;
  at::Tensor x = model.splice(prompt, visual_NTH, ctx);
  at::Tensor positions = prompt.positions;
  SeqInfo seq = prompt.seq;
  for (int64_t n = 0; n < budget; ++n) {
    const at::Tensor hidden = decoder.blocks(x, positions, seq, ctx, &cache);
    const at::Tensor logits =
        decoder.logits(hidden.narrow(0, hidden.size(0) - 1, 1), ctx).narrow(1, 0, vocabulary);
    const int32_t id = sampler.choose(0, logits).ids[0];
    out.ids.push_back(id);
    out.stopped = std::find(stops.begin(), stops.end(), id) != stops.end();
    if (out.stopped) break;
    const std::string piece = stream.push(id);
    if (on_text && !piece.empty()) on_text(piece);
    const Batch next = one_token(id, length + n, model.device());
    x = decoder.embed(next.input_ids, ctx);
    positions = next.positions;
    seq = next.seq;
  }
  const std::string rest = stream.finish();
  if (on_text && !rest.empty()) on_text(rest);
  out.text = std::string(trim(stream.text()));
  return out;
}

}  // namespace mgm
