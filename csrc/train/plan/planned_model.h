// A model as planning sees it: every use of a group by a forward pass with what kind of block it
// is, what trains in it and whether gradients pass through it. From a description alone (nothing is
// allocated).
#pragma once

#include <string>
#include <vector>

#include "dist/group_sizes.h"
#include "model/mini_gemini.h"

namespace mgm {

enum class UseKind {
  kClipEmbedding,
  kClipBlock,
  kConvnextStem,
  kConvnextStage,
  kMining,
  kProjector,
  kEmbedding,
  kDecoderBlock,
  kExperts,  // of a block, where they are dealt to several ranks
  kHead
};

// Adapters of a block as one token meets them: of experts the share that it visits.
struct PlannedAdapters {
  double params = 0;
  double inputs = 0;    // widths of their inputs
  double ranks = 0;     // widths between A and B
  int64_t trained = 0;  // elements, of all experts
};

struct PlannedUse {
  GroupUse use;
  UseKind kind = UseKind::kDecoderBlock;
  int number = 0;                   // of the block or stage
  int group = 0;                    // in PlannedModel::sizes
  int64_t params = 0, trained = 0;  // of the group
  bool upstream = false;            // its input has a gradient
  PlannedAdapters adapters;
  int64_t largest_packed = 0;  // elements of its largest packed weight
  // ConvNeXt stages: per block, whether it trains.
  std::vector<bool> blocks_train;
  RecomputePolicy recompute = RecomputePolicy::kNone;

  bool trains() const { return trained > 0; }
  bool base_trains() const { return trained > adapters.trained; }  // more than adapters
  bool backward() const { return trains() || upstream; }
};

struct PlannedModel {
  RunConfig config;
  ImageGeometry geometry;
  std::vector<GroupSize> sizes;
  std::vector<PlannedUse> uses;  // as MiniGemini::group_uses
  std::vector<GroupUse> order;   // the same, for PassProgram
  int64_t params = 0, trained = 0;
  double packed = 0;  // bytes of weights that are held packed, outside `sizes`; whole on every rank
  bool on_cpu = false;
  double element = 2;         // bytes of a weight or activation
  double reduce_element = 4;  // of a gradient between ranks, where it leaves every micro-batch

  bool deals_experts() const { return config.dist.expert_parallel > 1; }
  // With the decoder blocks' recomputation set to `policy`.
  PlannedModel with_decoder_recompute(RecomputePolicy policy) const;
};

PlannedModel plan_model(const RunConfig& config, const MiniGemini& model,
                        const std::vector<ParamPolicy>& policies);

// The micro-batch of one rank that memory or time is asked for.
struct BatchShape {
  int64_t segments = 0;  // samples
  int64_t rows = 0;      // tokens of all of them, visual tokens included
  int64_t images = 0;
  int64_t targets = 0;  // supervised tokens
  int64_t longest = 0;  // tokens of the longest sample
};

// `samples` samples of `tokens` tokens each, `images` pictures in each; what is text is supervised.
BatchShape even_shape(const PlannedModel& model, int64_t samples, int64_t tokens, int64_t images);

// Assumed length of a sample with a picture where nobody says: captions of the alignment set are
// about 30 tokens long, instruction conversations about 300 (means of the published data sets).
int64_t assumed_tokens(const PlannedModel& model);

}  // namespace mgm
