// Shape letters as in the model's files: T rows, M supervised rows, H width, A = heads x head
// width, K the same for key heads, I MLP width, V vocabulary; C channels; Q mining queries.
#include "train/plan/use_memory.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

namespace mgm {
namespace {

constexpr double kFp32 = 4, kInt64 = 8;

class Planner {
 public:
  Planner(const PlannedModel& model, const BatchShape& shape)
      : model_(model), shape_(shape), m_(model.config.model), e_(model.element) {
    for (const PlannedUse& use : model.uses) {
      if (use.kind == UseKind::kMining) mining_backward_ = use.backward();
    }
  }

  ActivationPlan plan() {
    ActivationPlan out;
    for (const PlannedUse& use : model_.uses) {
      out.uses.push_back(use_memory(use));
      if (use.use.vision && shape_.images == 0) out.uses.back() = {};
    }
    const double side = double(model_.config.image.hr_size), images = double(shape_.images);
    const double rotary = 2 * rows() * double(head_width(m_.llm)) * e_;
    out.batch = images * 3 * side * side + 3 * kInt64 * rows() +
                2 * kInt64 * double(shape_.targets) + rotary;
    const double lr = double(model_.geometry.lr_views()) * std::pow(double(lr_side()), 2);
    // Both pictures in fp32; the HR one again in the model's dtype, NHWC.
    out.pixels = 3 * images * (kFp32 * (side * side + lr) + e_ * side * side);
    out.logits = double(shape_.targets) * double(m_.llm.vocab_size) * 3 * kFp32;
    return out;
  }

 private:
  double rows() const { return double(shape_.rows); }
  int64_t lr_side() const { return m_.vision_tower.image_size; }

  // What recomputation changes: the input is kept instead of what is saved, and that is made again.
  // `input`: bytes of the block's input; `saved`: beyond the input; `extra`: beyond both, at the
  // peak of backward; `cached`: what selective keeps of `saved`.
  static UseMemory block(const PlannedUse& use, double input, double saved, double forward_plain,
                         double forward_saving, double extra, double cached) {
    UseMemory out;
    if (!use.backward()) {
      out.forward = forward_plain;
      return out;
    }
    const bool again = use.recompute != RecomputePolicy::kNone;
    const bool selective = use.recompute == RecomputePolicy::kSelective;
    out.kept = input + (again ? (selective ? cached : 0) : saved);
    out.forward = again ? forward_plain + (selective ? cached : 0) : forward_saving;
    out.backward = input + saved + extra;
    return out;
  }

  UseMemory use_memory(const PlannedUse& use) const {
    switch (use.kind) {
      case UseKind::kClipEmbedding:
        return clip_embedding(use);
      case UseKind::kClipBlock:
        return clip_block(use);
      case UseKind::kConvnextStem:
        return convnext_stem(use);
      case UseKind::kConvnextStage:
        return convnext_stage(use);
      case UseKind::kMining:
        return m_.mining.kernel == MiningKernel::kAbsorbed ? mining_absorbed(use)
                                                           : mining_literal(use);
      case UseKind::kProjector:
        return projector(use);
      case UseKind::kEmbedding:
        return embedding(use);
      case UseKind::kDecoderBlock:
        return decoder_block(use);
      case UseKind::kExperts:
        return dealt_experts(use);
      case UseKind::kHead:
        return head(use);
    }
    return {};
  }

  // ---- language model ---------------------------------------------------------------------------

  // Of the MLP's width while the gradient of its product goes through act(gate) * up.
  double mlp_gradients() const { return model_.on_cpu ? 3 : 2; }

  UseMemory decoder_block(const PlannedUse& use) const {
    const LlmConfig& c = m_.llm;
    const double T = rows() * e_, H = double(c.hidden_size);
    const double A = double(head_width(c) * c.num_heads);
    const double K = double(head_width(c) * c.num_kv_heads);
    const bool experts = c.num_experts > 0;
    const double visits = experts ? double(c.experts_per_token) : 1;
    const bool dealt = model_.deals_experts();  // they are a use of their own
    const double I = dealt ? 0 : double(c.intermediate_size) * visits;
    // Rows sorted by expert, and their results before they are weighted.
    const double routed = experts ? (dealt ? 1 : 2) * visits * H : 0;
    const double lse = rows() * double(c.num_heads) * kFp32;
    const bool adapters = use.adapters.trained > 0;
    const bool drops = adapters && m_.adapter.dropout > 0;
    // Inputs of linears are saved for what trains on them: the linears, or their adapters unless
    // dropout makes an input of its own for each.
    const double trained = use.base_trains() || (adapters && !drops) ? 1 : 0;
    // What norms behind linears save: the linears' results.
    const LlmTraits& traits = llm_traits(c.arch);
    const double behind = (traits.qk_norm ? A + K : 0) + (traits.post_norms ? 2 * H : 0);
    // RMSNorm is one operation on CUDA; on the CPU its normalised rows are saved too.
    const double norms = model_.on_cpu && use.base_trains() ? 2 * H + behind : 0;
    // Norms with 1 + w run in fp32, and save a copy of their input.
    const bool widened = traits.unit_norm && e_ < kFp32;
    const double normed = widened ? rows() * kFp32 * (2 * H + behind) : T * behind;
    const double low_rank =
        adapters ? T * (use.adapters.ranks + (drops ? use.adapters.inputs : 0)) : 0;
    // While a linear runs with an adapter: what is added to its result, and its dropped input.
    const double beside = use.adapters.params > 0 ? T * (I + (drops ? I : 0)) : 0;

    // x (the input, by the first norm); q, k, v and the attention's result; the row between both
    // halves (by the second norm); gate and up. Weights that train add their inputs: both norms'
    // results and the product of the MLP.
    const double saved = T * (A + 2 * K + A + H + 2 * I + routed + norms + trained * (2 * H + I)) +
                         normed + lse + low_rank;
    const double input = T * H;
    // A packed weight while it is dequantised.
    const double unpacked = double(use.largest_packed) * e_;
    // The sum at the end of a block: x, both norms' results, q, k, v, the row between, gate, up and
    // their product, the MLP's result and the block's.
    const double post = traits.post_norms ? 2 * H : 0;
    const double sum = T * (6 * H + A + 2 * K + 3 * I + routed + post) + beside + unpacked;
    // Capped scores of one sample, which no fused kernel makes: themselves and two more of the
    // softmax, in backward three and the gradient in the model's dtype.
    const double scores = c.attention_softcap > 0 ? double(c.num_heads) * double(shape_.longest) *
                                                        double(shape_.longest)
                                                  : 0;
    const double plain = std::max(sum, T * (2 * H + 2 * A + 2 * K) + 3 * kFp32 * scores);
    // Backward of the MLP's product: its gradient and those of gate and up, product still there
    // only where nothing saved it; on the CPU also what gate's gradient is made from. Or of its
    // last matrix, whose weight has a gradient of its own. An adapter's dropped input is gone as
    // soon as its linear's backward is.
    const double dropped = drops ? T * I : 0;
    const double product = T * (H + (mlp_gradients() + 1 - trained) * I) - dropped;
    const double matrix = dealt ? 0
                                : double(c.hidden_size * c.intermediate_size) * e_ *
                                      (experts ? double(c.num_experts) : 1);
    const double weight = T * (H + I) + dropped + (use.base_trains() ? matrix : 0) + unpacked;
    // Backward of attention: everything from gate on is gone; gradients of q, k and v, an fp32
    // accumulator of q's, and with grouped queries k's and v's gradients per query head.
    const double gone =
        T * ((2 + trained) * I + (1 + trained) * H + routed) + (drops ? dropped + 2 * T * H : 0);
    const double attention = -gone + T * (2 * H + A + A + 2 * K + (A > K ? 2 * A : 0)) +
                             rows() * A * (model_.on_cpu ? 0 : kFp32) + scores * (3 * kFp32 + e_);
    return block(use, input, saved, plain, plain + T * A + lse,
                 std::max({product, weight, attention}), T * A + lse);
  }

  // Rows that come to this rank's experts, as many as it sends. Beside what the experts need: rows
  // as they came and as they go back, and, for the router's gradient, all results.
  UseMemory dealt_experts(const PlannedUse& use) const {
    const LlmConfig& c = m_.llm;
    const double R = rows() * double(c.experts_per_token) * e_, H = double(c.hidden_size);
    const double I = double(c.intermediate_size);
    const double trained = use.trains() ? 1 : 0;
    const double mine = double(c.num_experts / model_.config.dist.expert_parallel);
    const double product = R * (H + (mlp_gradients() + 1 - trained) * I);
    const double weight = R * (H + I) + trained * H * I * mine * e_;
    UseMemory out = block(use, R * H, R * (2 + trained) * I, R * (2 * H + 3 * I),
                          R * (2 * H + 3 * I), std::max(product, weight), 0);
    out.forward += R * H;
    if (!use.backward()) return out;
    out.kept += R * H;
    out.backward += 2 * R * H;
    return out;
  }

  UseMemory embedding(const PlannedUse& use) const {
    const double T = rows() * e_ * double(m_.llm.hidden_size);
    UseMemory out;
    out.forward = 2 * T;  // its result, and the stream with visual tokens in it
    if (!use.backward()) return out;
    const double weight = double(m_.llm.vocab_size * m_.llm.hidden_size) * e_;
    out.backward = 2 * T + weight;
    return out;
  }

  UseMemory head(const PlannedUse& use) const {
    const double M = double(shape_.targets), H = double(m_.llm.hidden_size);
    const double logits = M * double(m_.llm.vocab_size);
    const double cast = e_ < kFp32 ? e_ : 0;  // in the model's dtype beside fp32
    const double normed = M * H * e_ * (1 + (model_.on_cpu ? 1 : 0));
    const double input = M * H * e_, trained = use.trains() ? 1 : 0;
    // With a cap: the tanh is saved; logits, their quotient, the tanh and its multiple.
    const bool capped = m_.llm.final_softcap > 0;
    const double saved = kFp32 * logits * (capped ? 2 : 1) + trained * normed;
    const double forward = input + normed + logits * ((capped ? 4 : 2) * kFp32 + cast);
    const double weight = double(m_.llm.vocab_size) * H * e_ * trained;
    // Gradients of the log-softmax and of the fp32 logits; later those of the cast and the weight,
    // when the softmax is gone.
    const double extra =
        std::max(2 * kFp32 * logits, (e_ - kFp32) * logits + 2 * M * H * e_ + weight);
    return block(use, input, saved, forward, forward, extra, 0);
  }

  // ---- bridge -----------------------------------------------------------------------------------

  double visual_rows() const { return double(shape_.images * model_.geometry.tokens()); }

  UseMemory projector(const PlannedUse& use) const {
    const std::string& type = m_.projector.type;
    if (type == "identity") return {};
    const double R = visual_rows() * e_, in = double(m_.vision_tower.hidden_size);
    const double out_width = double(m_.llm.hidden_size);
    const double depth = type == "linear" ? 1 : std::stoi(type.substr(3));
    const double trained = use.trains() ? 1 : 0;
    // Every GELU's input, and if weights train every layer's input.
    const double saved = R * out_width * (depth - 1) * (1 + trained);
    const double forward = R * (in + out_width * (2 * depth - 1));
    const double weight = out_width * (depth > 1 ? out_width : in) * e_ * trained;
    return block(use, R * in, saved, forward, forward, R * 2 * out_width + weight, 0);
  }

  bool maps_need_gradient(const PlannedUse& mining) const {
    if (!mining.upstream) return false;
    return std::any_of(model_.uses.begin(), model_.uses.end(), [](const PlannedUse& use) {
      return use.kind == UseKind::kConvnextStage && use.backward();
    });
  }

  double channels() const {
    double sum = 0;
    for (const int64_t dim : m_.convnext.dims) sum += double(dim);
    return sum;
  }

  // Both halves of the query's way to the kernel, and the values behind it.
  UseMemory mining_absorbed(const PlannedUse& use) const {
    const ImageGeometry& g = model_.geometry;
    const double images = double(shape_.images), Q = visual_rows();
    const double width = double(m_.vision_tower.hidden_size), C = channels();
    const double window = double(g.window * g.window);
    const double sides =
        std::pow(double(g.map_size), 2) + (g.global ? std::pow(double(g.map_size / g.grid), 2) : 0);
    const double trained = use.trains() ? 1 : 0, maps = maps_need_gradient(use) ? 1 : 0;
    // LR features, class token included (by the query's norm); the normed query and the query; the
    // query in channels before it is scaled; attention and the positions' mean and deviation; what
    // was pooled; the values in the model's dtype. The maps are the ConvNeXt stages' own.
    const double views = images * double(g.lr_views());
    const double input = views * double(g.lr_patches * g.lr_patches + 1) * width * e_;
    const double saved = trained * Q * (2 * width * e_ + C * (2 * kFp32 + e_)) +
                         kFp32 * (Q * window + 2 * images * sides) +
                         maps * kFp32 * Q * (C + window);
    const double forward = input + Q * width * e_ * 3 + Q * C * (4 * kFp32 + e_) +
                           kFp32 * (Q * 2 * window + 2 * images * sides);
    const double extra = Q * C * 3 * kFp32 + Q * width * e_ +
                         maps * (images * map_elements() * e_ + images * sides * 4 * kFp32);
    return block(use, input, saved, forward, forward, extra, 0);
  }

  // The concatenated map cut into windows, normed twice, projected twice.
  UseMemory mining_literal(const PlannedUse& use) const {
    const ImageGeometry& g = model_.geometry;
    const double width = double(m_.vision_tower.hidden_size), C = channels();
    const double positions = visual_rows() * double(g.window * g.window);
    const double views = double(shape_.images * g.lr_views());
    const double input = views * double(g.lr_patches * g.lr_patches + 1) * width * e_;
    const double trained = use.trains() ? 1 : 0;
    const double map = double(shape_.images) * std::pow(double(g.map_size), 2) * C * e_;
    const double saved = positions * e_ * (C + 2 * width + trained * 2 * C) +
                         trained * visual_rows() * 2 * width * e_;
    const double forward = input + map + positions * e_ * (3 * C + 3 * width);
    const double extra = positions * e_ * (C + 2 * width);
    return block(use, input, saved, std::max(forward, input + map + map_resize()), forward, extra,
                 0);
  }

  // Bytes in fp32 of the widest stage resized to the whole map, and its cast.
  double map_resize() const {
    return double(shape_.images) * std::pow(double(model_.geometry.map_size), 2) *
           double(m_.convnext.dims.back()) * (kFp32 + e_);
  }

  double stage_area(int stage) const {
    return std::pow(std::floor(double(model_.geometry.map_size) / double(int64_t{1} << stage)), 2);
  }
  double map_elements() const {  // of one image
    double sum = 0;
    for (size_t s = 0; s < m_.convnext.dims.size(); ++s) {
      sum += stage_area(static_cast<int>(s)) * double(m_.convnext.dims[s]);
    }
    return sum;
  }

  // ---- encoders ---------------------------------------------------------------------------------

  double clip_unit() const {
    const double side = double(m_.vision_tower.image_size / m_.vision_tower.patch_size);
    return double(shape_.images * model_.geometry.lr_views()) * (side * side + 1) * e_;
  }

  UseMemory clip_embedding(const PlannedUse& use) const {
    const double unit = clip_unit() * double(m_.vision_tower.hidden_size);
    const double lr = 3 * double(shape_.images * model_.geometry.lr_views()) *
                      std::pow(double(lr_side()), 2) * e_;
    return block(use, lr, unit, lr + 4 * unit, lr + 4 * unit, 2 * unit, 0);
  }

  UseMemory clip_block(const PlannedUse& use) const {
    const double unit = clip_unit(), C = double(m_.vision_tower.hidden_size);
    const double I = double(m_.vision_tower.intermediate_size);
    const double trained = use.trains() ? 1 : 0;
    // q, k, v, the attention's result and the row between both halves; quick GELU saves its input
    // and its sigmoid. Weights that train add both norms' results and the MLP's product.
    const double saved = unit * (5 * C + 2 * I + trained * (2 * C + I));
    // x, the first norm's result, attention's result, the row between, MLP's and block's result;
    // MLP: input of the GELU, that scaled, its sigmoid and the product.
    const double forward = unit * (6 * C + 4 * I);
    const double extra = unit * (C + 3 * I - trained * I);
    return block(use, unit * C, saved, forward, forward + unit * 4 * C, extra, 0);
  }

  double stage_unit(int stage) const {
    return double(shape_.images) * stage_area(stage) *
           double(m_.convnext.dims[static_cast<size_t>(stage)]) * e_;
  }

  UseMemory convnext_stem(const PlannedUse& use) const {
    return block(use, 0, 2 * stage_unit(0), 3 * stage_unit(0), 3 * stage_unit(0), stage_unit(0), 0);
  }

  // A block: its input, the depthwise result, the normed rows, four widths before and behind the
  // GELU, the MLP's result, that times gamma.
  UseMemory convnext_stage(const PlannedUse& use) const {
    const double unit = stage_unit(use.number);
    double saved = 0;
    bool upstream = use.upstream;
    for (const bool trains : use.blocks_train) {
      upstream = upstream || trains;
      // A convolution saves its input whatever trains; linear layers only where they train.
      if (upstream) saved += unit * (trains ? 12 : 6);
    }
    UseMemory out = block(use, 0, saved, 13 * unit, saved + 13 * unit, 9 * unit, 0);
    // Its map, which mining reads, and saves where it passes a gradient.
    (mining_backward_ ? out.kept : out.held) += unit;
    if (use.backward()) out.backward += unit;
    return out;
  }

  const PlannedModel& model_;
  const BatchShape& shape_;
  const ModelConfig& m_;
  const double e_;
  bool mining_backward_ = false;
};

}  // namespace

ActivationPlan plan_activations(const PlannedModel& model, const BatchShape& shape) {
  return Planner(model, shape).plan();
}

}  // namespace mgm
