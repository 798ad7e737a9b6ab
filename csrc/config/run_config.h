// RunConfig: everything a run is told. Plain structs with defaults; the .cpp describes every field
// once. Immutable after read_run_config (config/reader.h). Keys in YAML are the member names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/schema.h"

namespace mgm {

enum class ModelInit { kPretrained, kRandom };
// kAuto never leaves read_run_configs where that was given a way to read model directories.
enum class LlmArch { kAuto, kLlama, kGemma, kMixtral, kMistral, kGemma2, kQwen2, kQwen3, kPhi3 };
enum class Quantize { kNone, kNf4, kInt8 };
enum class RopeType { kDefault, kLinear, kLlama3, kLongrope };
enum class Activation { kSilu, kGelu, kGeluTanh };
enum class HrEncoder { kNone, kConvnext, kConvnextBase, kConvnextLarge, kConvnextXxlarge };
enum class SelectFeature { kPatch, kClsPatch };
enum class MiningKernel { kAbsorbed, kReference };
enum class AdapterKind { kNone, kLora };
enum class ImageAspect { kPad, kSquare };
enum class HrSource { kNative, kUpsampledLr };
enum class MarkerPolicy { kError, kCollapse };
enum class Grouping { kNone, kModalityLength };
enum class OnError { kStop, kSkip };
enum class ScheduleKind { kCosine, kLinear, kConstant };
enum class DeviceKind { kAuto, kCpu, kCuda };
enum class DtypeKind { kAuto, kFloat32, kBfloat16 };
enum class LossNorm { kGlobalTokens, kMicroBatch };
enum class RecomputePolicy { kNone, kFull, kSelective };
enum class DistMode { kReplicate, kZero1, kZero2, kZero3, kHybrid };
enum class DistBackend { kAuto, kNccl, kGloo };
enum class Reduction { kFast, kStrict };
enum class Offload { kNone, kOptimizer };
enum class OnNonFinite { kStop, kSkip };
enum class RulePreset {
  kNone,
  kStage1,
  kStage2,
  kOptimizeVisionTower,
  kOptimizeVisionTowerAux,
  kAdapter
};

struct RopeScalingConfig {
  RopeType type = RopeType::kDefault;
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_max_positions = 0;
  std::vector<double> short_factor;
  std::vector<double> long_factor;
  double attention_factor = 0;  // 0: from factor
  void describe(FieldVisitor& v);
};

struct LlmConfig {
  std::string path;
  LlmArch arch = LlmArch::kLlama;
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;
  int64_t num_layers = 32;
  int64_t num_heads = 32;
  int64_t num_kv_heads = 32;
  int64_t head_dim = 0;  // 0: hidden_size / num_heads
  double rope_theta = 10000;
  RopeScalingConfig rope_scaling;
  double rotary_fraction = 1;
  double norm_eps = 1e-5;
  int64_t max_positions = 4096;
  Activation activation = Activation::kSilu;
  bool tie_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  int64_t sliding_window = 0;            // 0: none
  std::vector<std::string> layer_types;  // empty: as the architecture has it
  double query_scalar = 0;               // 0: the head's width
  double attention_softcap = 0;          // 0: none
  double final_softcap = 0;              // 0: none
  int64_t num_experts = 0;
  int64_t experts_per_token = 2;
  double router_aux_loss = 0;
  double init_std = 0.02;  // 0: 1 / sqrt(fan_in)
  Quantize quantize = Quantize::kNone;
  void describe(FieldVisitor& v);
};

struct VisionTowerConfig {
  std::string path;
  int64_t image_size = 336;
  int64_t patch_size = 14;
  int64_t hidden_size = 1024;
  int64_t intermediate_size = 4096;
  int64_t num_layers = 24;
  int64_t num_heads = 16;
  double norm_eps = 1e-5;
  int64_t select_layer = -2;
  SelectFeature select_feature = SelectFeature::kPatch;
  void describe(FieldVisitor& v);
};

struct ConvnextConfig {
  std::string path;
  std::vector<int64_t> depths = {3, 3, 27, 3};
  std::vector<int64_t> dims = {192, 384, 768, 1536};
  double norm_eps = 1e-6;
  double drop_path = 0.1;
  double layer_scale = 1e-6;
  void describe(FieldVisitor& v);
};

struct MiningConfig {
  MiningKernel kernel = MiningKernel::kAbsorbed;
  void describe(FieldVisitor& v);
};

struct ProjectorConfig {
  std::string type = "mlp2x_gelu";
  std::string path;
  void describe(FieldVisitor& v);
};

struct AdapterConfig {
  AdapterKind kind = AdapterKind::kNone;
  std::string path;
  int64_t rank = 64;
  double alpha = 16;
  double dropout = 0.05;
  std::vector<std::string> targets;  // empty: every linear of the decoder blocks but routers
  bool rslora = false;
  void describe(FieldVisitor& v);
};

struct ModelConfig {
  ModelInit init = ModelInit::kPretrained;
  std::string path;
  LlmConfig llm;
  VisionTowerConfig vision_tower;
  HrEncoder hr_encoder = HrEncoder::kConvnextLarge;
  ConvnextConfig convnext;
  MiningConfig mining;
  ProjectorConfig projector;
  AdapterConfig adapter;
  void describe(FieldVisitor& v);
};

struct ImageConfig {
  int64_t hr_size = 768;
  int64_t grid = 1;
  bool global = false;
  ImageAspect aspect = ImageAspect::kPad;
  HrSource hr_source = HrSource::kNative;
  std::vector<double> mean = {0.48145466, 0.4578275, 0.40821073};
  std::vector<double> std = {0.26862954, 0.26130258, 0.27577711};
  void describe(FieldVisitor& v);
};

struct TextConfig {
  std::string template_name = "v1";  // key: template
  std::string tokenizer;
  int64_t max_length = 2048;
  MarkerPolicy markers = MarkerPolicy::kError;
  void describe(FieldVisitor& v);
};

struct PathRewrite {
  std::string match;
  std::string from;
  std::string to;
  void describe(FieldVisitor& v);
};

struct DataSource {
  std::string annotations;
  std::string images;
  std::vector<PathRewrite> rewrites;
  void describe(FieldVisitor& v);
};

struct DataConfig {
  std::vector<DataSource> sources;
  Grouping grouping = Grouping::kNone;
  bool shuffle = true;
  OnError on_error = OnError::kStop;
  int64_t workers = 4;
  int64_t prefetch = 8;
  int64_t expected_samples = 0;
  void describe(FieldVisitor& v);
};

struct OptimizerConfig {
  double lr = 1e-3;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0;
  double clip_norm = 0;  // 0: no clipping
  void describe(FieldVisitor& v);
};

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kCosine;
  double warmup_ratio = 0.03;
  int64_t warmup_steps = 0;  // > 0 overrides warmup_ratio
  double min_ratio = 0;
  void describe(FieldVisitor& v);
};

struct TrainRule {
  RulePreset preset = RulePreset::kNone;
  std::string match;
  bool train = true;
  double lr_scale = 1;
  double weight_decay = -1;  // < 0: optimizer.weight_decay
  void describe(FieldVisitor& v);
};

struct RecomputeRule {
  std::string match;
  RecomputePolicy policy = RecomputePolicy::kFull;
  void describe(FieldVisitor& v);
};

struct TrainConfig {
  int64_t epochs = 1;
  int64_t max_steps = 0;  // > 0 overrides epochs, in both directions
  int64_t global_batch = 256;
  int64_t micro_batch = 16;
  int64_t seed = 42;
  DeviceKind device = DeviceKind::kAuto;
  DtypeKind dtype = DtypeKind::kAuto;
  bool deterministic = false;
  int64_t threads = 0;  // 0: all cores
  LossNorm loss_norm = LossNorm::kGlobalTokens;
  OnNonFinite on_nonfinite = OnNonFinite::kStop;
  std::vector<TrainRule> rules;
  std::vector<RecomputeRule> recompute;
  void describe(FieldVisitor& v);
};

struct DistTimeouts {
  double start = 1800;
  double step = 60;
  double save = 1800;
  double silence = 15;
  void describe(FieldVisitor& v);
};

struct DistConfig {
  DistMode mode = DistMode::kZero2;
  DistBackend backend = DistBackend::kAuto;
  Reduction reduction = Reduction::kFast;
  DtypeKind reduce_dtype = DtypeKind::kAuto;
  int64_t virtual_shards = 8;
  int64_t shard_size = 0;  // 0: the ranks of a node
  int64_t expert_parallel = 1;
  Offload offload = Offload::kNone;
  DistTimeouts timeout_s;
  void describe(FieldVisitor& v);
};

struct CheckpointConfig {
  int64_t every_steps = 0;    // 0: never by step
  double every_minutes = 10;  // 0: never by time
  int64_t keep = 2;
  bool at_end = true;
  bool asynchronous = true;  // key: async
  void describe(FieldVisitor& v);
};

struct LogConfig {
  int64_t every_steps = 1;
  bool tensorboard = true;
  int64_t profile_first = 0;  // 0: no profile
  int64_t profile_steps = 2;
  void describe(FieldVisitor& v);
};

struct RunSection {
  std::string dir;
  void describe(FieldVisitor& v);
};

struct RunConfig {
  RunSection run;
  ModelConfig model;
  ImageConfig image;
  TextConfig text;
  DataConfig data;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  TrainConfig train;
  DistConfig dist;
  CheckpointConfig checkpoint;
  LogConfig log;
  void describe(FieldVisitor& v);
};

// A problem with a resolved config, at the key it belongs to; the reader adds file:line:col.
struct ConfigProblem {
  std::string key;  // "image.hr_size"
  std::string message;
  // The keys that the rule reads; empty: any of the key's section.
  std::vector<std::string> reads = {};
};

// Rules that span fields (divisibility, geometry, shapes). Fills sizes that a named preset implies
// (model.hr_encoder: convnext_large sets model.convnext.depths and dims). Does not look at the
// disk.
std::vector<ConfigProblem> resolve_and_check(RunConfig& config);

}  // namespace mgm
