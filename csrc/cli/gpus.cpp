#include "cli/gpus.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "train/device.h"

namespace mgm::cli {
namespace {

at::Device gpu(int64_t index) { return {at::kCUDA, static_cast<c10::DeviceIndex>(index)}; }

Card card(int64_t index) { return {index, gpu_free_bytes(gpu(index))}; }

// The numbers of a list like "0,2"; none for "auto".
std::vector<int64_t> parse_gpus(const std::string& gpus) {
  std::vector<int64_t> out;
  if (gpus == "auto") return out;
  for (const std::string& part : split(gpus, ',')) {
    const bool number = !part.empty() && part.size() < 4 &&
                        part.find_first_not_of("0123456789") == std::string::npos;
    if (!number) {
      throw ConfigError("--gpus ", gpus, ": '", part, "' is no number of a GPU; numbers are ",
                        "separated by commas, and auto chooses");
    }
    const int64_t index = std::stoll(part);
    if (std::find(out.begin(), out.end(), index) != out.end()) {
      throw ConfigError("--gpus ", gpus, ": GPU ", index, " is named twice");
    }
    out.push_back(index);
  }
  return out;
}

// Splits the decoder and says so; returns the first GPU.
at::Device spread(LoadedModel& model, const std::vector<Card>& cards,
                  const std::vector<int64_t>& first_block) {
  const at::Device first = gpu(cards[0].index);
  use_gpu(first);
  if (first_block.size() == 1) return first;
  const int64_t blocks = model.description.model.llm.num_layers;
  std::vector<DecoderStage> stages;
  std::vector<std::string> text;
  for (size_t i = 0; i < first_block.size(); ++i) {
    const int64_t end = i + 1 < first_block.size() ? first_block[i + 1] : blocks;
    stages.push_back({first_block[i], gpu(cards[i].index)});
    text.push_back(cat(first_block[i], " to ", end - 1, " on GPU ", cards[i].index));
  }
  model.model->split_decoder(std::move(stages));
  log::info("blocks " + join(text, ", "));
  return first;
}

// One that cannot be used, perhaps because it belongs to another process, is as good as full.
Card card_or_full(int64_t index) {
  try {
    return card(index);
  } catch (const ConfigError& e) {
    log::warn(e.what());
    return {index, 0};
  }
}

at::Device place_anywhere(LoadedModel& model, const ModelBytes& bytes, int64_t visible) {
  // To ask a GPU for its memory costs some of it: those that are not needed are not asked.
  std::vector<Card> cards = {card_or_full(0)};
  if (bytes.on_one(0, bytes.blocks.size()) > cards[0].free_bytes) {
    for (int64_t i = 1; i < visible; ++i) cards.push_back(card_or_full(i));
    std::stable_sort(cards.begin(), cards.end(),
                     [](const Card& a, const Card& b) { return a.free_bytes > b.free_bytes; });
  }
  return spread(model, cards, place_blocks(bytes, cards, /*fewest=*/true));
}

}  // namespace

void add_gpus_option(CLI::App& command, std::string& gpus) {
  command
      .add_option("--gpus", gpus,
                  "GPUs that hold the model, whole blocks each: numbers like 0,1, all of which are "
                  "used; auto: one if it fits with its cache, else as few as needed")
      ->capture_default_str();
}

void place_on_gpus(const std::string& gpus,
                   std::function<DecodeLoad(const LoadedModel& unbound)> load,
                   ModelLoadOptions& options) {
  const std::vector<int64_t> named = parse_gpus(gpus);
  if (!options.device.is_cuda()) {
    if (named.empty()) return;
    throw ConfigError("--gpus ", gpus, ", but the model is to run on the CPU; leave out one of ",
                      "--gpus and --device cpu, or check nvidia-smi");
  }
  const int64_t visible = visible_gpus();
  for (const int64_t index : named) {
    if (index < visible) continue;
    throw ConfigError("--gpus ", gpus, ": there is no GPU ", index, ", ", visible,
                      " are visible; check nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  if (named.empty() && visible == 1) return;
  if (named.size() == 1) {
    options.device = gpu(named[0]);
    use_gpu(options.device);
    return;
  }
  const at::ScalarType dtype = options.dtype;
  options.place = [=](LoadedModel& model) {
    const ModelBytes bytes = model_bytes(*model.model, dtype, load(model));
    if (named.empty()) return place_anywhere(model, bytes, visible);
    std::vector<Card> cards;
    for (const int64_t index : named) cards.push_back(card(index));
    return spread(model, cards, place_blocks(bytes, cards, /*fewest=*/false));
  };
}

}  // namespace mgm::cli
