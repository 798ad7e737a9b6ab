#include "infer/step_graphs.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"
#include "config/llm_arch.h"
#include "ops/decode_attention.h"
#ifdef MGM_WITH_CUDA
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/util/Exception.h>
#endif

namespace mgm {
namespace {

#ifdef MGM_WITH_CUDA

class GraphStep final : public RecordedStep {
 public:
  at::Tensor replay() override {
    graph.replay();
    return logits;
  }

  at::cuda::CUDAGraph graph;
  at::Tensor logits;  // in the graph's memory
};

// What is launched on the current stream while it lives becomes the graph.
class Capture {
 public:
  Capture(at::cuda::CUDAGraph& graph, at::cuda::MempoolId_t pool) : graph_(graph), pool_(pool) {
    graph_.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  }
  void finish() {
    open_ = false;
    graph_.capture_end();
  }
  // After an error: capture_end() says again what interrupted the capture, and then leaves the
  // allocators as they are, which would go on asking the graph whose memory to hand out.
  ~Capture() {
    if (!open_) return;
    attempt([this] { graph_.capture_end(); });
    attempt([this] {
      c10::cuda::CUDACachingAllocator::endAllocateToPool(c10::cuda::current_device(), pool_);
    });
    attempt([this] { at::getHostAllocator(at::kCUDA)->end_allocate_to_pool(pool_); });
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

 private:
  template <class F>
  static void attempt(const F& f) {
    try {
      f();
    } catch (const std::exception&) {  // what interrupted the capture is already on its way
    }
  }

  at::cuda::CUDAGraph& graph_;
  at::cuda::MempoolId_t pool_;
  bool open_ = true;
};

class GraphRecorder final : public StepRecorder {
 public:
  explicit GraphRecorder(at::Device device)
      : stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}

  void begin() override { pool_ = at::cuda::graph_pool_handle(); }

  std::unique_ptr<RecordedStep> record(const StepBody& step) override {
    auto out = std::make_unique<GraphStep>();
    const c10::cuda::CUDAStreamGuard on(stream_);  // the default stream cannot be recorded
    warm_up();
    c10::cuda::device_synchronize();
    try {
      Capture capture(out->graph, pool_);
      out->logits = step();
      capture.finish();
    } catch (const c10::Error& e) {
      throw InternalError("a decode step cannot be recorded as a CUDA graph; --no-graphs decodes ",
                          "without. ", e.what_without_backtrace());
    }
    return out;
  }

 private:
  // cuBLAS has a workspace per stream, which must not become part of a graph's memory.
  void warm_up() {
    if (warm_) return;
    const at::Tensor x =
        at::zeros({16, 16}, at::TensorOptions(stream_.device()).dtype(at::kBFloat16));
    at::mm(x, x);
    warm_ = true;
  }

  c10::cuda::CUDAStream stream_;
  at::cuda::MempoolId_t pool_{0, 0};
  bool warm_ = false;
};

#endif

}  // namespace

std::unique_ptr<StepRecorder> make_graph_recorder([[maybe_unused]] at::Device device) {
#ifdef MGM_WITH_CUDA
  if (device.is_cuda()) return std::make_unique<GraphRecorder>(device);
#endif
  return nullptr;
}

std::string unrecordable(const Decoder& decoder, at::ScalarType dtype) {
  const LlmConfig& config = decoder.config();
  const int64_t width = head_width(config);
  if (config.num_experts > 0) {
    return "the host may have to count the visits of its experts";
  }
  if (decoder.stages().size() > 1) return "its layers lie on several devices";
  if (!ops::decode_attention_takes(at::Device(at::kCUDA), dtype, width)) {
    return cat("its attention over heads of width ", width, " needs lengths on the host");
  }
  return "";
}

StepGraphs::StepGraphs(StepRecorder* recorder) : recorder_(recorder) {
  if (recorder_) recorder_->begin();
}

at::Tensor StepGraphs::run(int64_t rows, const StepBody& step) {
  if (!recorder_ || seen_.insert(rows).second) return step();
  Kept& kept = kept_[rows];
  if (!kept.step) {
    kept.step = recorder_->record(step);
    ++recorded_;
  }
  kept.last_use = ++replayed_;
  const at::Tensor logits = kept.step->replay();
  if (kept_.size() > kMost) drop_oldest();
  return logits;
}

void StepGraphs::drop_oldest() {
  kept_.erase(std::min_element(kept_.begin(), kept_.end(), [](const auto& a, const auto& b) {
    return a.second.last_use < b.second.last_use;
  }));
}

}  // namespace mgm
