#include "train/recompute.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include "base/error.h"
#include "base/strings.h"
#include "ops/attention.h"

namespace mgm {
namespace {

using torch::autograd::SavedVariableHooks;
using HookFactory = std::function<std::unique_ptr<SavedVariableHooks>()>;

thread_local std::vector<HookFactory> g_hooks;

class HookEngine final : public torch::autograd::Engine {
 public:
  static torch::autograd::Engine& get() {
    static auto* engine =
        new HookEngine();  // leaked: static destruction must not outrun its threads
    return *engine;
  }
  std::unique_ptr<SavedVariableHooks> get_default_saved_variable_hooks() override {
    return g_hooks.empty() ? nullptr : g_hooks.back()();
  }
};

class HookGuard {
 public:
  explicit HookGuard(HookFactory factory) { g_hooks.push_back(std::move(factory)); }
  ~HookGuard() { g_hooks.pop_back(); }
  HookGuard(const HookGuard&) = delete;
  HookGuard& operator=(const HookGuard&) = delete;
};

// What one run of a block leaves behind. Tensors are stored detached and the hooks of the
// recomputation hold the frame weakly: otherwise frame -> tensor -> graph -> hook -> frame never
// dies.
struct Frame {
  std::function<void()> recompute;
  std::vector<at::Tensor> saved;
  ops::AttentionCache attention;
  size_t expected = 0;  // tensors the forward run saved
  bool done = false;
};

// Thrown out of the second run once the last needed tensor is there; not an error, so not an
// exception.
struct StopRecompute {};

class RecordHooks final : public SavedVariableHooks {
 public:
  explicit RecordHooks(const std::shared_ptr<Frame>& frame) : frame_(frame) {}
  void call_pack_hook(const at::Tensor& tensor) override {
    const auto frame = frame_.lock();
    frame->saved.push_back(tensor.detach());
    if (frame->saved.size() == frame->expected) throw StopRecompute{};
  }
  at::Tensor call_unpack_hook() override {
    throw InternalError("the recomputed graph must not run backward");
  }

 private:
  std::weak_ptr<Frame> frame_;
};

class CountHooks final : public SavedVariableHooks {
 public:
  explicit CountHooks(std::shared_ptr<Frame> frame) : frame_(std::move(frame)) {}
  void call_pack_hook(const at::Tensor&) override { index_ = frame_->expected++; }
  at::Tensor call_unpack_hook() override {
    if (!frame_->done) {
      {
        const at::AutoGradMode grad(true);
        const HookGuard guard([frame = frame_] { return std::make_unique<RecordHooks>(frame); });
        try {
          frame_->recompute();
        } catch (const StopRecompute&) {
        }
      }
      frame_->done = true;
      frame_->recompute = nullptr;
      MGM_CHECK(frame_->saved.size() == frame_->expected, "a block saved ", frame_->expected,
                " tensors in forward and ", frame_->saved.size(), " when run again");
    }
    return std::move(frame_->saved[index_]);  // one backward: freed as soon as its node has used it
  }

 private:
  std::shared_ptr<Frame> frame_;
  size_t index_ = 0;
};

class RecomputeRunner final : public BlockRunner {
 public:
  explicit RecomputeRunner(std::vector<RecomputeRule> rules) : rules_(std::move(rules)) {}

  Tensors run(const std::string& group, const Tensors& inputs, const BlockBody& body) override {
    RecomputePolicy policy = RecomputePolicy::kNone;
    for (const RecomputeRule& rule : rules_) {
      if (glob_match(rule.match, group)) policy = rule.policy;
    }
    if (policy == RecomputePolicy::kNone || !at::GradMode::is_enabled()) return body(inputs);

    auto frame = std::make_shared<Frame>();
    const bool keep_attention = policy == RecomputePolicy::kSelective;
    std::vector<bool> needs_grad;
    Tensors kept;
    for (const at::Tensor& input : inputs) {
      kept.push_back(input.detach());
      needs_grad.push_back(input.requires_grad());
    }
    frame->recompute = [body, kept, needs_grad, keep_attention,
                        weak = std::weak_ptr<Frame>(frame)] {
      Tensors again;
      for (size_t i = 0; i < kept.size(); ++i) {
        again.push_back(kept[i].detach());
        if (needs_grad[i]) again.back().requires_grad_(true);
      }
      if (keep_attention) {
        const ops::AttentionCacheGuard replay(weak.lock()->attention,
                                              ops::AttentionCacheMode::kReplay);
        body(again);
      } else {
        body(again);
      }
    };
    const HookGuard guard([frame] { return std::make_unique<CountHooks>(frame); });
    if (!keep_attention) return body(inputs);
    const ops::AttentionCacheGuard record(frame->attention, ops::AttentionCacheMode::kRecord);
    return body(inputs);
  }

 private:
  std::vector<RecomputeRule> rules_;
};

}  // namespace

void install_recompute_engine() { torch::autograd::set_default_engine_stub(&HookEngine::get); }

std::unique_ptr<BlockRunner> make_recompute_runner(std::vector<RecomputeRule> rules) {
  return std::make_unique<RecomputeRunner>(std::move(rules));
}

}  // namespace mgm
