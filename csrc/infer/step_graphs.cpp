#include "infer/step_graphs.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "config/llm_arch.h"
#include "ops/decode_attention.h"
#ifdef MGM_WITH_CUDA
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/MemPool.h>
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

// Memory that only graphs use, the same for all of a recorder's life: what a graph leaves behind is
// there for the next one. An allocator forgets a pool whose last graph is gone, and does not take
// its id again; so this is a user of it too.
class GraphMemory {
 public:
  explicit GraphMemory(c10::DeviceIndex device) {
    const c10::cuda::CUDAGuard on(device);
    device_.emplace();
    host().begin_allocate_to_pool(id(), [](c10::Stream) { return false; });
    host().end_allocate_to_pool(id());
  }
  ~GraphMemory() { host().release_pool(id()); }
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

  at::cuda::MempoolId_t id() { return device_->id(); }
  static at::HostAllocator& host() { return *at::getHostAllocator(at::kCUDA); }

 private:
  std::optional<at::cuda::MemPool> device_;
};

template <class F>
bool attempt(const F& f) {
  try {
    f();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// What `step` launches on the current stream becomes the graph.
void capture(GraphStep& out, at::cuda::MempoolId_t pool, const StepBody& step) {
  at::cuda::CUDAGraph& graph = out.graph;
  try {
    graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
    out.logits = step();
    graph.capture_end();
  } catch (...) {
    // capture_end() says again what interrupted the capture, and then leaves the allocators as they
    // are: they would go on asking this graph whose memory to hand out, and count it as a user.
    const c10::DeviceIndex device = c10::cuda::current_device();
    namespace cuda = c10::cuda::CUDACachingAllocator;
    attempt([&] { graph.capture_end(); });
    if (attempt([&] { cuda::endAllocateToPool(device, pool); })) cuda::releasePool(device, pool);
    if (attempt([&] { GraphMemory::host().end_allocate_to_pool(pool); })) {
      GraphMemory::host().release_pool(pool);
    }
    throw;
  }
}

class GraphRecorder final : public StepRecorder {
 public:
  explicit GraphRecorder(at::Device device)
      : stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())),
        memory_(device.index()) {}

  std::unique_ptr<RecordedStep> record(const StepBody& step) override {
    const c10::cuda::CUDAStreamGuard on(stream_);  // the default stream cannot be recorded
    warm_up();
    c10::cuda::device_synchronize();
    try {
      try {
        return captured(step);
      } catch (const c10::OutOfMemoryError&) {
        // While a graph is recorded the allocator gives nothing back that it holds in reserve.
        c10::cuda::CUDACachingAllocator::emptyCache();
      }
      return captured(step);
    } catch (const c10::Error& e) {
      throw InternalError("a decode step cannot be recorded as a CUDA graph: ",
                          e.what_without_backtrace());
    }
  }

 private:
  std::unique_ptr<RecordedStep> captured(const StepBody& step) {
    auto out = std::make_unique<GraphStep>();
    capture(*out, memory_.id(), step);
    return out;
  }

  // cuBLAS has a workspace per stream, which must not become part of a graph's memory.
  void warm_up() {
    if (warm_) return;
    const at::Tensor x =
        at::zeros({16, 16}, at::TensorOptions(stream_.device()).dtype(at::kBFloat16));
    at::mm(x, x);
    warm_ = true;
  }

  c10::cuda::CUDAStream stream_;
  GraphMemory memory_;
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
  if (config.num_experts > 0 && (dtype != at::kBFloat16 || decoder.waits_for_visits())) {
    return "the host has to count the visits of its experts";
  }
  if (decoder.stages().size() > 1) return "its layers lie on several devices";
  if (!ops::decode_attention_takes(at::Device(at::kCUDA), dtype, width)) {
    return cat("its attention over heads of width ", width, " needs lengths on the host");
  }
  return "";
}

at::Tensor StepGraphs::run(int64_t rows, const StepBody& step) {
  if (!recorder_ || recorder_->given_up() || seen_.insert(rows).second) return step();
  Kept& kept = kept_[rows];
  if (!kept.step) {
    try {
      kept.step = recorder_->record(step);
    } catch (const InternalError& e) {
      log::warn(cat(e.what(), " From here on steps run without (--no-graphs)."));
      recorder_->give_up();
      return step();
    }
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
