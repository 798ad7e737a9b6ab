#include "assemble/placement.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "config/llm_arch.h"

namespace mgm {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

uint64_t param_bytes(const ParamSpec& spec, uint64_t item) {
  if (spec.format == WeightFormat::kDense) return static_cast<uint64_t>(spec.numel()) * item;
  return static_cast<uint64_t>(packed_bytes(spec.format, spec.numel(), spec.shape[0]));
}

struct Cut {
  double fill = kNever;  // of the fullest card
  std::vector<int64_t> first_block;
};

// The best way to cut the blocks over all cards: best[j] of the first c cards and j blocks.
Cut best_cut(const ModelBytes& bytes, const std::vector<Card>& cards, size_t count) {
  const size_t blocks = bytes.blocks.size();
  std::vector<Cut> best(blocks + 1);
  best[0].fill = 0;
  for (size_t c = 0; c < count; ++c) {
    std::vector<Cut> next(blocks + 1);
    const double free = double(cards[c].free_bytes);
    for (size_t begin = 0; begin < blocks; ++begin) {
      if (best[begin].fill == kNever) continue;
      for (size_t end = begin + 1; end <= blocks; ++end) {
        const double own = free > 0 ? double(bytes.on_one(begin, end)) / free : kNever;
        const double fill = std::max(best[begin].fill, own);
        if (fill >= next[end].fill) continue;
        next[end] = {fill, best[begin].first_block};
        next[end].first_block.push_back(static_cast<int64_t>(begin));
      }
    }
    best = std::move(next);
  }
  return best[blocks];
}

// Libraries' workspaces and kernels; what a block makes of the prompts; scores, where plain
// products attend (fp32, soft caps); a packed matrix unpacked for its product.
uint64_t work_bytes(const MiniGemini& model, at::ScalarType dtype, const DecodeLoad& load) {
  const LlmConfig& llm = model.config().llm;
  const auto item = static_cast<int64_t>(c10::elementSize(dtype));
  int64_t unpacked = 0;
  for (const Param* param : model.params()) {
    if (param->spec.format != WeightFormat::kDense) {
      unpacked = std::max(unpacked, param->spec.numel());
    }
  }
  int64_t width = 8 * llm.hidden_size;
  if (llm.num_experts > 0) {
    width += llm.experts_per_token * (3 * llm.intermediate_size + 2 * llm.hidden_size);
  } else {
    width += 3 * llm.intermediate_size;
  }
  int64_t scores = 0;
  if (dtype == at::kFloat || llm.attention_softcap > 0) {
    const int64_t longest = std::min(load.prompt_tokens, load.capacity);
    scores = 3 * int64_t{sizeof(float)} * llm.num_heads * longest * longest;
  }
  return static_cast<uint64_t>((int64_t{1} << 30) + item * (load.prompt_tokens * width + unpacked) +
                               scores);
}

}  // namespace

uint64_t ModelBytes::weights() const {
  return std::accumulate(blocks.begin(), blocks.end(), first + last);
}

uint64_t ModelBytes::on_one(size_t begin, size_t end) const {
  uint64_t sum = work + (begin == 0 ? first : 0) + (end == blocks.size() ? last : 0);
  for (size_t i = begin; i < end; ++i) sum += blocks[i] + cache;
  return sum;
}

ModelBytes model_bytes(const MiniGemini& model, at::ScalarType dtype, const DecodeLoad& load) {
  const LlmConfig& llm = model.config().llm;
  const auto item = static_cast<uint64_t>(c10::elementSize(dtype));
  ModelBytes out;
  out.blocks.resize(static_cast<size_t>(llm.num_layers));
  for (const Param* param : model.params()) {
    const uint64_t bytes = param_bytes(param->spec, item);
    const int64_t block = model.decoder().block_of(param->spec.group);
    if (block < 0) {
      out.first += bytes;
    } else if (block < llm.num_layers) {
      out.blocks[static_cast<size_t>(block)] += bytes;
    } else {
      out.last += bytes;
    }
  }
  const auto tokens = static_cast<uint64_t>(load.rows * load.capacity);
  out.cache = 2 * tokens * static_cast<uint64_t>(llm.num_kv_heads * head_width(llm)) * item;
  out.work = work_bytes(model, dtype, load);
  return out;
}

std::vector<int64_t> place_blocks(const ModelBytes& bytes, const std::vector<Card>& cards,
                                  bool fewest) {
  MGM_CHECK(!cards.empty() && !bytes.blocks.empty(), cards.size(), " cards for ",
            bytes.blocks.size(), " blocks");
  if (!fewest && cards.size() > bytes.blocks.size()) {
    throw ConfigError(cards.size(), " GPUs for a model of ", bytes.blocks.size(),
                      " blocks: each has to hold at least one");
  }
  for (size_t count = fewest ? 1 : cards.size(); count <= cards.size(); ++count) {
    const Cut cut = best_cut(bytes, cards, count);
    if (cut.fill <= 1) return cut.first_block;
  }
  const auto size = [](uint64_t count) { return human_bytes(double(count)); };
  std::vector<std::string> room;
  for (const Card& card : cards) {
    room.push_back(cat("GPU ", card.index, " has ", size(card.free_bytes), " free"));
  }
  throw ConfigError(
      "the model does not fit: ", size(bytes.weights()), " of weights (",
      size(*std::max_element(bytes.blocks.begin(), bytes.blocks.end())), " in the largest of ",
      bytes.blocks.size(), " blocks), ", size(bytes.cache * bytes.blocks.size()),
      " of cache, and about ", size(bytes.work), " to work with on every GPU; ", join(room, ", "),
      ". Take more GPUs (--gpus), fewer questions at a time (--batch-size, --beams), ",
      "shorter answers (--max-new-tokens) or fewer bits (--quantize)");
}

}  // namespace mgm
