#include "config/run_config.h"

#include <utility>

namespace mgm {

// ---- names of enumerations, in the order of their declaration -----------------------------------
#define MGM_ENUM_NAMES(E, ...)                                        \
  template <>                                                         \
  struct EnumNames<E> {                                               \
    static std::vector<std::string> names() { return {__VA_ARGS__}; } \
  }
MGM_ENUM_NAMES(ModelInit, "pretrained", "random");
MGM_ENUM_NAMES(LlmArch, "auto", "llama", "gemma", "mixtral", "mistral", "gemma2", "qwen2", "qwen3",
               "phi3");
MGM_ENUM_NAMES(Quantize, "none", "nf4", "int8");
MGM_ENUM_NAMES(RopeType, "default", "linear", "llama3", "longrope");
MGM_ENUM_NAMES(Activation, "silu", "gelu", "gelu_tanh");
MGM_ENUM_NAMES(HrEncoder, "none", "convnext", "convnext_base", "convnext_large",
               "convnext_xxlarge");
MGM_ENUM_NAMES(SelectFeature, "patch", "cls_patch");
MGM_ENUM_NAMES(MiningKernel, "absorbed", "reference");
MGM_ENUM_NAMES(AdapterKind, "none", "lora");
MGM_ENUM_NAMES(ImageAspect, "pad", "square");
MGM_ENUM_NAMES(HrSource, "native", "upsampled_lr");
MGM_ENUM_NAMES(MarkerPolicy, "error", "collapse");
MGM_ENUM_NAMES(Grouping, "none", "modality_length");
MGM_ENUM_NAMES(OnError, "stop", "skip");
MGM_ENUM_NAMES(ScheduleKind, "cosine", "linear", "constant");
MGM_ENUM_NAMES(DeviceKind, "auto", "cpu", "cuda");
MGM_ENUM_NAMES(DtypeKind, "auto", "float32", "bfloat16");
MGM_ENUM_NAMES(LossNorm, "global_tokens", "micro_batch");
MGM_ENUM_NAMES(RecomputePolicy, "none", "full", "selective");
MGM_ENUM_NAMES(DistMode, "replicate", "zero1", "zero2", "zero3", "hybrid");
MGM_ENUM_NAMES(DistBackend, "auto", "nccl", "gloo");
MGM_ENUM_NAMES(Reduction, "fast", "strict");
MGM_ENUM_NAMES(Offload, "none", "optimizer");
MGM_ENUM_NAMES(OnNonFinite, "stop", "skip");
MGM_ENUM_NAMES(RulePreset, "none", "stage1", "stage2", "optimize_vision_tower",
               "optimize_vision_tower_aux", "adapter");
#undef MGM_ENUM_NAMES

namespace {

// Upper limits, far above any real model, keep sums and products of sizes within 64 bits.
constexpr double kMaxSize = 1 << 20;    // widths, counts per layer, batch sizes
constexpr double kMaxPixels = 1 << 16;  // side of an image
constexpr double kMaxTokens = 1 << 24;  // of one sequence
constexpr double kMaxLayers = 4096;
constexpr double kMaxExperts = 1024;  // of a block; each has weights of its own to be named
constexpr double kMaxVocab = 1 << 30;
constexpr double kMaxEpochs = 1e6;
constexpr double kMaxCount = 1e12;  // samples, steps
constexpr double kMaxRate = 1e6;    // learning rates and their factors

}  // namespace

// ---- fields -------------------------------------------------------------------------------------
void RopeScalingConfig::describe(FieldVisitor& v) {
  v.choice("type", type, "how the rotary frequencies are stretched");
  v.field("factor", factor,
          "linear, llama3: what frequencies are divided by; longrope: "
          "max_position_embeddings / original_max_positions of config.json",
          between(1, 1e6));
  v.field("low_freq_factor", low_freq_factor, "llama3: slower than this is divided in full",
          between(0, 1e6));
  v.field("high_freq_factor", high_freq_factor, "llama3: faster than this is left alone",
          between(0, 1e6));
  v.field("original_max_positions", original_max_positions,
          "llama3, longrope: longest sequence of the first training", between(0, kMaxTokens));
  v.field("short_factor", short_factor, "longrope: divisor of each frequency", between(0, 1e6));
  v.field("long_factor", long_factor,
          "longrope: the divisors of longer sequences; written to config.json, not used",
          between(0, 1e6));
  v.field("attention_factor", attention_factor,
          "longrope: factor of the rotated parts; 0: from factor", between(0, 1e6));
}

void LlmConfig::describe(FieldVisitor& v) {
  v.field("path", path, "Hugging Face directory with the LLM's weights and tokenizer");
  v.choice("arch", arch,
           "block architecture; auto: this and the sizes below are what the config.json of the "
           "weights says");
  v.field("vocab_size", vocab_size, "rows of the embedding", between(1, kMaxVocab));
  v.field("hidden_size", hidden_size, "width", between(1, kMaxSize));
  v.field("intermediate_size", intermediate_size, "width of the MLP", between(1, kMaxSize));
  v.field("num_layers", num_layers, "decoder blocks", between(1, kMaxLayers));
  v.field("num_heads", num_heads, "query heads", between(1, kMaxSize));
  v.field("num_kv_heads", num_kv_heads, "key and value heads (grouped-query attention)",
          between(1, kMaxSize));
  v.field("head_dim", head_dim, "width of a head; 0: hidden_size / num_heads",
          between(0, kMaxSize));
  v.field("rope_theta", rope_theta, "base of the rotary position embedding", between(1, 1e12));
  v.field("rotary_fraction", rotary_fraction, "share of a head's width that is rotated",
          between(0, 1));
  v.field("norm_eps", norm_eps, "epsilon of RMSNorm", between(0, 1));
  v.field("max_positions", max_positions, "longest sequence the model was made for",
          between(1, kMaxTokens));
  v.choice("activation", activation, "activation of the MLP");
  v.field("tie_embeddings", tie_embeddings, "lm_head shares the embedding's weight");
  v.field("attention_bias", attention_bias, "biases of q, k, v and o");
  v.field("mlp_bias", mlp_bias, "biases of gate, up and down");
  v.field("sliding_window", sliding_window, "tokens a query sees, itself included; 0: all",
          between(0, kMaxTokens));
  v.field("layer_types", layer_types,
          "per layer sliding_attention or full_attention; empty: a window in every layer, with "
          "gemma2 in every other one from the first");
  v.field("query_scalar", query_scalar,
          "queries are divided by its square root; 0: the head's width", between(0, 1e6));
  v.field("attention_softcap", attention_softcap, "c tanh(scores / c) before the softmax; 0: none",
          between(0, 1e6));
  v.field("final_softcap", final_softcap, "c tanh(logits / c) of the head; 0: none",
          between(0, 1e6));
  v.field("num_experts", num_experts, "experts per MoE block; 0: dense", between(0, kMaxExperts));
  v.field("experts_per_token", experts_per_token, "experts a token visits",
          between(1, kMaxExperts));
  v.field("router_aux_loss", router_aux_loss,
          "weight of the load-balancing loss in training; 0: none", between(0, 1e3));
  v.field("init_std", init_std,
          "standard deviation of random initialisation; 0: 1 / sqrt(fan_in) per matrix",
          between(0, 1e3));
  v.choice("quantize", quantize,
           "how the frozen linears of the blocks are held: none, in train.dtype; nf4, 4-bit "
           "NormalFloat with double quantisation; int8, 8 bits and a scale per row. Dequantised "
           "for each product");
  v.section("rope_scaling", rope_scaling, "rotary embedding beyond the first training's length");
}

void VisionTowerConfig::describe(FieldVisitor& v) {
  v.field(
      "path", path,
      "Hugging Face directory of the CLIP vision tower; empty beside model.llm.path: drawn from "
      "train.seed, and all of it has to train");
  v.field("image_size", image_size, "side of one LR view, pixels", between(1, kMaxPixels));
  v.field("patch_size", patch_size, "side of a patch, pixels", between(1, kMaxPixels));
  v.field("hidden_size", hidden_size, "width", between(1, kMaxSize));
  v.field("intermediate_size", intermediate_size, "width of the MLP", between(1, kMaxSize));
  v.field("num_layers", num_layers, "transformer blocks", between(1, kMaxLayers));
  v.field("num_heads", num_heads, "attention heads", between(1, kMaxSize));
  v.field("norm_eps", norm_eps, "epsilon of LayerNorm", between(0, 1));
  v.field("select_layer", select_layer,
          "which of the num_layers + 1 hidden states is the feature; negative counts from the end",
          between(-kMaxLayers - 1, kMaxLayers));
  v.choice("select_feature", select_feature, "patch drops the class token, cls_patch keeps it");
}

void ConvnextConfig::describe(FieldVisitor& v) {
  v.field("path", path,
          "OpenCLIP directory of the ConvNeXt tower; empty beside model.llm.path: drawn from "
          "train.seed, and all of it has to train");
  v.field("depths", depths, "blocks per stage (set by hr_encoder unless it is convnext)",
          between(1, kMaxLayers));
  v.field("dims", dims, "channels per stage (set by hr_encoder unless it is convnext)",
          between(1, kMaxSize));
  v.field("norm_eps", norm_eps, "epsilon of LayerNorm", between(0, 1));
  v.field("drop_path", drop_path,
          "stochastic depth rate of the last block in training, rising linearly from 0; also "
          "active in the frozen tower, as published (0 switches it off: the `nodp` recipes)",
          between(0, 0.999));
  v.field("layer_scale", layer_scale, "initial value of gamma for model.init: random",
          between(0, 10));
}

void MiningConfig::describe(FieldVisitor& v) {
  v.choice("kernel", kernel,
           "absorbed: key and value projections moved off the HR positions (same function, 60 "
           "times fewer operations); reference: the literal form");
}

void ProjectorConfig::describe(FieldVisitor& v) {
  v.field("type", type, "linear, mlpNx_gelu (N from 1 to 16) or identity");
  v.field("path", path,
          "mm_projector.bin written by stage 1: projector and mining weights to start from");
}

void AdapterConfig::describe(FieldVisitor& v) {
  v.choice(
      "kind", kind,
      "none; lora: y = W x + scale B A x on the linears of the LLM's blocks that targets names");
  v.field("path", path,
          "directory in PEFT's layout to start from; empty: A drawn from train.seed, B zero");
  v.field("rank", rank, "rows of A, columns of B", between(1, kMaxSize));
  v.field("alpha", alpha, "scale is alpha / rank", between(0, kMaxRate));
  v.field("dropout", dropout, "share of an adapter's input that training sets to 0",
          between(0, 0.999));
  v.field("targets", targets,
          "names of weights, with * and ?, with or without .weight at the end; one that matches "
          "nothing is an error. Empty: q, k, v, o, gate, up and down of every block");
  v.field("rslora", rslora, "scale is alpha / sqrt(rank)");
}

void ModelConfig::describe(FieldVisitor& v) {
  v.choice("init", init,
           "pretrained: from the directories named by path keys; random: from train.seed");
  v.field("path", path,
          "directory of a complete model (as mgm export writes it); overrides llm.path");
  v.section("llm", llm, "the language model");
  v.section("vision_tower", vision_tower, "the LR encoder, a CLIP ViT");
  v.choice("hr_encoder", hr_encoder,
           "the HR encoder: a published ConvNeXt, `convnext` with free sizes, or none (plain LLaVA "
           "path, no mining parameters)");
  v.section("convnext", convnext, "sizes of the HR encoder");
  v.section("mining", mining, "patch info mining");
  v.section("projector", projector, "from LR width to LLM width");
  v.section("adapter", adapter,
            "small matrices that train beside frozen ones of the language model");
}

void ImageConfig::describe(FieldVisitor& v) {
  v.field("hr_size", hr_size, "side of the square HR canvas, pixels (image_size_aux)",
          between(32, kMaxPixels));
  v.field("grid", grid, "LR tiles per side (image_grid)", between(1, 16));
  v.field("global", global,
          "one more LR view of the whole picture beside the tiles (image_global)");
  v.choice("aspect", aspect,
           "pad: paste on a square of the mean colour; square: centre crop of the short side");
  v.choice("hr_source", hr_source,
           "native: the HR canvas; upsampled_lr: the LR view enlarged again (ablation: no detail)");
  v.field("mean", mean, "channel means of the normalisation, RGB", between(0, 1));
  v.field("std", std, "channel standard deviations of the normalisation, RGB; above 0",
          between(0, 1e3));
}

void TextConfig::describe(FieldVisitor& v) {
  v.field("template", template_name,
          "conversation template (see `mgm render --help` for the names)");
  v.field("tokenizer", tokenizer,
          "tokenizer file or a directory holding it; empty: the directory of the model");
  v.field("max_length", max_length, "longest sample in tokens, visual tokens included",
          between(1, kMaxTokens));
  v.choice("markers", markers,
           "several image markers in one message: error unless they match the images; collapse "
           "keeps one, as the reference does, and counts it");
}

void PathRewrite::describe(FieldVisitor& v) {
  v.field("match", match, "only for image paths that contain this");
  v.field("from", from, "text to replace in the path");
  v.required("from");
  v.field("to", to, "replacement; used when the rewritten file exists");
  v.required("to");
}

void DataSource::describe(FieldVisitor& v) {
  v.field("annotations", annotations, "JSON array of LLaVA records");
  v.required("annotations");
  v.field("images", images, "folder that the records' image paths are relative to");
  v.list("rewrites", rewrites,
         "path fixes for known layouts, tried in order when a file is missing");
}

void DataConfig::describe(FieldVisitor& v) {
  v.list("sources", sources, "annotation files; their records are concatenated in this order");
  v.choice("grouping", grouping,
           "none: a plain shuffle; modality_length: every global batch of one modality, similar "
           "lengths together");
  v.field("shuffle", shuffle, "draw a new order per epoch from train.seed");
  v.choice("on_error", on_error,
           "a bad sample (missing image, cut by max_length, no supervised token, ...): stop with "
           "its name, or skip it, leaving a counted hole in its batch");
  v.field("workers", workers, "threads that decode and tokenise; 0: in the training thread",
          between(0, 1024));
  v.field("prefetch", prefetch, "micro-batches prepared ahead", between(1, 1024));
  v.field("expected_samples", expected_samples,
          "about how many records there are, for --plan without the data; with the data its own "
          "count is used and a difference reported",
          between(0, kMaxCount));
}

void OptimizerConfig::describe(FieldVisitor& v) {
  v.field("lr", lr, "base learning rate", between(0, kMaxRate));
  v.field("betas", betas, "AdamW moment decay rates", between(0, 0.999999));
  v.field("eps", eps, "AdamW epsilon", between(0, 1));
  v.field("weight_decay", weight_decay, "decoupled weight decay; never on biases and norm weights",
          between(0, kMaxRate));
  v.field("clip_norm", clip_norm, "largest global gradient norm; 0: no clipping", at_least(0));
}

void ScheduleConfig::describe(FieldVisitor& v) {
  v.choice("kind", kind, "shape after the warm-up");
  v.field("warmup_ratio", warmup_ratio, "share of all steps with rising rate, rounded up",
          between(0, 1));
  v.field("warmup_steps", warmup_steps, "steps with rising rate; above 0 overrides warmup_ratio",
          between(0, kMaxCount));
  v.field("min_ratio", min_ratio, "rate at the end as a share of lr", between(0, 1));
}

void TrainRule::describe(FieldVisitor& v) {
  v.choice("preset", preset,
           "a named set of patterns: stage1 (projector and mining), stage2 (stage1 and the LLM), "
           "optimize_vision_tower (last half of the CLIP blocks), optimize_vision_tower_aux (last "
           "ConvNeXt block of each stage), adapter (what model.adapter adds)");
  v.field("match", match, "parameter names, with * and ?; one that matches nothing is an error");
  v.field("train", train, "false freezes what matches");
  v.field("lr_scale", lr_scale, "factor on the learning rate", between(0, kMaxRate));
  v.field("weight_decay", weight_decay, "instead of optimizer.weight_decay; below 0: not set");
}

void RecomputeRule::describe(FieldVisitor& v) {
  v.field("match", match, "block names, with * and ? (listed by mgm train --plan)");
  v.required("match");
  v.choice("policy", policy,
           "none: keep activations; full: keep the block's input and run it again in backward; "
           "selective: full, but attention outputs are kept");
}

void TrainConfig::describe(FieldVisitor& v) {
  v.field("epochs", epochs, "passes over the data", between(1, kMaxEpochs));
  v.field("max_steps", max_steps, "optimizer steps; above 0 overrides epochs, in both directions",
          between(0, kMaxCount));
  v.field("global_batch", global_batch, "samples per optimizer step over all ranks",
          between(1, kMaxSize));
  v.field("micro_batch", micro_batch, "samples per forward on one rank; accumulation follows",
          between(1, kMaxSize));
  v.field("seed", seed, "fixes initialisation, order and drop path", at_least(0));
  v.choice("device", device, "auto: cuda where there is one");
  v.choice("dtype", dtype, "of weights and activations; auto: float32 on cpu, bfloat16 on cuda");
  v.field("deterministic", deterministic,
          "the same bits from run to run on cuda too (on cpu always)");
  v.field("threads", threads,
          "CPU threads of one operation; 0: all cores. On cpu the bits of a run depend on it",
          between(0, 1024));
  v.choice("loss_norm", loss_norm,
           "global_tokens: sum over all targets of the step / their number; micro_batch: mean of "
           "the micro-batch means, as the reference");
  v.choice("on_nonfinite", on_nonfinite,
           "a loss or gradient that is not finite: stop with the samples of the step (exit code "
           "6), or skip the update, count and report it; no weight changes either way");
  v.list("rules", rules,
         "what trains: applied in order, the last match wins; nothing trains by default");
  v.list("recompute", recompute, "activation recomputation per block: the last match wins");
}

void DistTimeouts::describe(FieldVisitor& v) {
  v.field("start", start, "until every rank has loaded and begun", between(1, kMaxCount));
  v.field("step", step, "without a finished step", between(1, kMaxCount));
  v.field("save", save, "in one checkpoint or export", between(1, kMaxCount));
  v.field("silence", silence,
          "without a sign of life of a rank (it gives one a second), which is then taken for "
          "killed, or without an answer of the first rank's host",
          between(3, kMaxCount));
}

void DistConfig::describe(FieldVisitor& v) {
  v.choice("mode", mode,
           "what is cut over the ranks: replicate nothing; zero1 optimizer state; zero2 gradients "
           "too; zero3 parameters too; hybrid as zero3 inside a shard group, copies across. With "
           "one rank all are the same");
  v.choice("backend", backend, "auto: nccl on cuda, gloo on cpu");
  v.choice("reduction", reduction,
           "fast; or strict: weights, losses and norms are the same bits for every world size that "
           "divides virtual_shards, in every mode");
  v.choice("reduce_dtype", reduce_dtype,
           "of gradients on their way between ranks; auto: float32. They add up in float32");
  v.field("virtual_shards", virtual_shards,
          "strict: leaves that the gradients of a step are summed from; divides global_batch",
          between(1, kMaxSize));
  v.field("shard_size", shard_size, "hybrid: ranks of a shard group; 0: the ranks of a node",
          between(0, kMaxSize));
  v.field(
      "expert_parallel", expert_parallel,
      "ranks that the experts of a block are dealt to (mixtral); divides num_experts, the world "
      "and, in hybrid, the shard group. 1: every rank has all of them",
      between(1, kMaxSize));
  v.choice("offload", offload,
           "optimizer: fp32 weights and moments stay in host memory and are updated there; on the "
           "CPU they always do, and a run says so");
  v.section(
      "timeout_s", timeout_s,
      "seconds a phase, or the silence of a rank, may last before the job is ended with the name "
      "of the rank that hangs or is gone");
}

void CheckpointConfig::describe(FieldVisitor& v) {
  v.field("every_steps", every_steps, "save after so many steps; 0: not by step",
          between(0, kMaxCount));
  v.field("every_minutes", every_minutes, "save after so many minutes; 0: not by time",
          between(0, kMaxRate));
  v.field("keep", keep, "newest checkpoints kept", between(1, kMaxCount));
  v.field("at_end", at_end, "save after the last step");
  v.field("async", asynchronous,
          "copy the state and go on training while it is written; false: wait for the disk");
}

void LogConfig::describe(FieldVisitor& v) {
  v.field("every_steps", every_steps,
          "progress line after so many steps (metrics.jsonl gets every step)",
          between(1, kMaxCount));
  v.field("tensorboard", tensorboard, "write TensorBoard event files into the run folder");
  v.field(
      "profile_first", profile_first,
      "first step whose timeline is written to run.dir/trace_rank_N.json (Chrome trace); 0: none",
      between(0, kMaxCount));
  v.field("profile_steps", profile_steps, "steps of the timeline", between(1, 1000));
}

void RunSection::describe(FieldVisitor& v) {
  v.field("dir", dir, "folder of this run: config, metrics, logs, checkpoints");
}

void RunConfig::describe(FieldVisitor& v) {
  v.section("run", run, "where results go");
  v.section("model", model, "architecture and weights");
  v.section("image", image, "image geometry and preprocessing");
  v.section("text", text, "template and tokenizer");
  v.section("data", data, "training records");
  v.section("optimizer", optimizer, "AdamW");
  v.section("schedule", schedule, "learning rate over time");
  v.section("train", train, "the loop");
  v.section("dist", dist, "ranks");
  v.section("checkpoint", checkpoint, "saving and keeping");
  v.section("log", log, "progress and metrics");
}

}  // namespace mgm
