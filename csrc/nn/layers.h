// The small building blocks: linear, convolution, norms, embedding. Each declares its parameters
// under its published name and applies one ATen operation. Shapes: ... any leading dimensions.
#pragma once

#include <optional>

#include "nn/module.h"
#include "ops/dropout.h"

namespace mgm {

Init constant_init(double value);
Init normal_init(double std);
Init uniform_init(double bound);
Init torch_linear_init(
    int64_t fan_in);  // U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch.nn.Linear's default

// The random numbers that rows of a token stream have in one training step.
struct RowDraws {
  ops::RowCounters counters;  // [T]; undefined: nothing is random
  uint64_t key = 0;           // of the seed and the step

  bool active() const { return counters.sample.defined(); }
  // Those of rows that were picked by int64 indices, or of a range.
  RowDraws select(const at::Tensor& rows) const;
  RowDraws narrow(int64_t begin, int64_t count) const;
};

// A low-rank adapter (LoRA, arXiv 2106.09685; PEFT lora.Linear).
struct Lora {
  int64_t rank = 0;
  double scale = 1;
  double dropout = 0;
};

// y = x W^T (+ b). weight [out, in], bias [out]. With an adapter y + scale B A dropout(x); A [rank,
// in] starts uniform in +-1 / sqrt(in), B [out, rank] at 0, so that nothing changes at first. A
// weight that is packed is dequantised to x's dtype for each product.
class Linear : public Module {
 public:
  struct Inits {
    Init weight, bias;
  };
  Linear(const std::string& prefix, const std::string& group, int64_t in, int64_t out, bool bias,
         Inits inits);
  // Declares lora_A.weight and lora_B.weight in the linear's group. Once, before storage is bound.
  void adapt(const Lora& lora);
  // The weight is to be held in another format than dense.
  void hold_as(WeightFormat format) { weight_.spec.format = format; }
  // `draws`: of x's rows, where dropout is wanted; x is then [T, in].
  at::Tensor operator()(const at::Tensor& x, const RowDraws& draws = {}) const;
  const Param& weight() const { return weight_; }
  const Param& bias() const { return *bias_; }
  // No more than a dense matrix.
  bool plain() const { return !bias_ && !lora_ && !weight_.packed.defined(); }
  const std::optional<Lora>& lora() const { return lora_; }
  const Param& lora_a() const { return *lora_a_; }  // both only with lora()
  const Param& lora_b() const { return *lora_b_; }

 private:
  at::Tensor base(const at::Tensor& x) const;  // without the adapter

  Param& weight_;
  Param* bias_ = nullptr;
  std::optional<Lora> lora_;
  Param *lora_a_ = nullptr, *lora_b_ = nullptr;
};

// Over the last dimension, with weight and bias.
class LayerNorm : public Module {
 public:
  LayerNorm(const std::string& prefix, const std::string& group, int64_t width, double eps);
  at::Tensor operator()(const at::Tensor& x) const;
  const Param& weight() const { return weight_; }
  const Param& bias() const { return bias_; }
  double eps() const { return eps_; }

 private:
  int64_t width_;
  double eps_;
  Param& weight_;
  Param& bias_;
};

// x / sqrt(mean(x^2) + eps) * w over the last dimension, statistics in fp32 (HF LlamaRMSNorm). With
// `unit` the factor is 1 + w, and all of it is fp32 until the result is rounded (HF GemmaRMSNorm).
class RmsNorm : public Module {
 public:
  RmsNorm(const std::string& prefix, const std::string& group, int64_t width, double eps,
          bool unit = false);
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  int64_t width_;
  double eps_;
  bool unit_;
  Param& weight_;
};

// rows of weight [rows, width] for int64 ids.
class Embedding : public Module {
 public:
  Embedding(const std::string& prefix, const std::string& group, int64_t rows, int64_t width,
            Init init);
  at::Tensor operator()(const at::Tensor& ids) const;
  const Param& weight() const { return weight_; }

 private:
  Param& weight_;
};

// x NHWC [N, h, w, in] -> [N, h', w', out]; weight [out, in / groups, k, k].
class Conv2d : public Module {
 public:
  struct Shape {
    int64_t in, out, kernel, stride, padding, groups;
    bool bias;
  };
  Conv2d(const std::string& prefix, const std::string& group, Shape shape, Init init);
  at::Tensor operator()(const at::Tensor& x_NHWC) const;

 private:
  Shape shape_;
  Param& weight_;
  Param* bias_ = nullptr;
};

}  // namespace mgm
