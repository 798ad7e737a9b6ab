#include "checkpoint/weight_loader.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "base/error.h"

namespace mgm {
namespace {

// Kinds of problems.
constexpr const char* kMissing = "missing";
constexpr const char* kUnexpected = "unexpected";

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.npos, end) == 0;
}

// Problems by kind; a wrong file has thousands of one kind, so each kind is cut for the message.
class Problems {
 public:
  void add(const std::string& kind, const std::string& what) { kinds_[kind].push_back(what); }

  void throw_if_any(const std::string& source, size_t params, const std::string& advice) const {
    if (kinds_.empty()) return;
    constexpr size_t kShown = 12;
    std::string text;
    size_t count = 0;
    for (const auto& [kind, list] : kinds_) {
      text += cat("\n", list.size(), " ", kind, ":");
      for (size_t i = 0; i < list.size() && i < kShown; ++i) text += "\n  " + list[i];
      if (list.size() > kShown) text += cat("\n  ... and ", list.size() - kShown, " more");
      count += list.size();
    }
    if (!advice.empty() && kinds_.contains(kMissing)) text += "\n" + advice;
    throw CheckpointError(source, ": ", count, " problems between these weights and the model of ",
                          params, " tensors:", text);
  }

 private:
  std::map<std::string, std::vector<std::string>> kinds_;
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const int64_t size : shape) sizes.push_back(std::to_string(size));
  return "[" + join(sizes, ", ") + "]";
}

// 577 rows are 24 x 24 patches and the class token.
std::string grid_text(int64_t rows) {
  const auto side = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(rows - 1))));
  if (side * side + 1 != rows) return cat(rows, " positions");
  return cat(side, " x ", side, " patches and the class token");
}

// What usually lies behind a shape that does not fit.
std::string likely_cause(const std::string& name, const std::vector<int64_t>& want,
                         const std::vector<int64_t>& have) {
  if (want.size() != have.size() || want.empty()) return "";
  if (ends_with(name, "embeddings.position_embedding.weight") && want[0] != have[0]) {
    return cat(": the file has ", grid_text(have[0]), ", the model ", grid_text(want[0]),
               ": a CLIP of another image or patch size");
  }
  const bool vocabulary = ends_with(name, "embed_tokens.weight") || ends_with(name, kHeadWeight);
  if (vocabulary && want[0] != have[0]) {
    return cat(": a vocabulary of ", have[0], " in the file, of ", want[0],
               " in the model: compare vocab_size and the tokenizer");
  }
  if (name.find("vision_tower_aux") != name.npos) return ": a ConvNeXt of another size";
  if (name.find("vision_tower.") != name.npos) return ": a CLIP of another size";
  if (name.find("vlm_uni_") != name.npos) return ": mining heads of another pair of towers";
  if (ends_with(name, "mm_projector.0.weight") && want[1] != have[1]) {
    return ": a projector for another vision tower";
  }
  if (name.find("mm_projector") != name.npos) return ": a projector for another language model";
  if (name.find("k_proj") != name.npos || name.find("v_proj") != name.npos) {
    return ": compare num_key_value_heads, hidden_size and head_dim in config.json";
  }
  return ": compare hidden_size and intermediate_size in config.json";
}

bool is_weight_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

// Whether an exponent is all ones, which that of NaN and infinity is and no other. As fast as
// memory: on a cold file this is where its bytes are read.
template <class Bits>
bool any_full_exponent(const at::Tensor& tensor, Bits exponent) {
  const auto* bits = static_cast<const Bits*>(tensor.const_data_ptr());
  std::atomic<bool> found{false};
  constexpr int64_t kGrain = 1 << 18;
  at::parallel_for(0, tensor.numel(), kGrain, [&](int64_t begin, int64_t end) {
    Bits hit = 0;
    for (int64_t i = begin; i < end; ++i) {
      hit = static_cast<Bits>(hit | static_cast<Bits>((bits[i] & exponent) == exponent));
    }
    if (hit != 0) found.store(true, std::memory_order_relaxed);
  });
  return found.load(std::memory_order_relaxed);
}

bool all_finite(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  switch (values.scalar_type()) {
    case at::kFloat:
      return !any_full_exponent<uint32_t>(values, 0x7F800000);
    case at::kBFloat16:
      return !any_full_exponent<uint16_t>(values, 0x7F80);
    case at::kHalf:
      return !any_full_exponent<uint16_t>(values, 0x7C00);
    case at::kDouble:
      return !any_full_exponent<uint64_t>(values, 0x7FF0000000000000);
    default:
      throw InternalError("weights of type ", at::toString(values.scalar_type()));
  }
}

std::string count_non_finite(const at::Tensor& tensor) {
  const at::Tensor wide = tensor.to(at::kDouble);
  const int64_t nan = wide.isnan().sum().item<int64_t>();
  const int64_t inf = wide.isinf().sum().item<int64_t>();
  return cat(nan, " NaN and ", inf, " infinite of ", tensor.numel(), " values");
}

// Names and shapes, from headers alone.
void compare(const std::vector<Param*>& params, const TensorSource& source,
             const LoadOptions& options, LoadReport& report, Problems& problems) {
  std::set<std::string> wanted;
  for (const Param* param : params) {
    const std::string& name = param->spec.name;
    MGM_CHECK(wanted.insert(name).second, "parameter '", name, "' is declared twice");
    if (!source.contains(name)) {
      if (options.may_lack && options.may_lack(*param)) {
        report.missing.push_back(name);
      } else {
        const bool tied = name == kHeadWeight && source.contains(kEmbeddingWeight);
        problems.add(kMissing, tied ? cat(name,
                                          ": files of models with tied embeddings have none; "
                                          "set tie_word_embeddings / model.llm.tie_embeddings")
                                    : name);
      }
      continue;
    }
    const TensorInfo& info = source.info(name);
    if (info.shape != param->spec.shape) {
      problems.add("of another shape", cat(name, ": ", shape_text(info.shape), " in ", info.file,
                                           ", ", shape_text(param->spec.shape), " in the model",
                                           likely_cause(name, param->spec.shape, info.shape)));
    } else if (!is_weight_type(info.type)) {
      problems.add("of a type that is no weight",
                   cat(name, ": ", info.dtype, " in ", info.file,
                       "; quantised files are not read, use the float weights"));
    }
  }
  for (const std::string& name : source.names()) {
    if (wanted.count(name) > 0) continue;
    if (is_unused_buffer(name)) {
      report.ignored.push_back(name);
    } else if (name == kHeadWeight && wanted.count(kEmbeddingWeight) > 0 &&
               source.contains(kEmbeddingWeight)) {
      if (equal_tensors(source, name, kEmbeddingWeight)) {
        report.ignored.push_back(name);
      } else {
        problems.add(kUnexpected, cat(name, ": differs from ", kEmbeddingWeight,
                                      ", but the model's config ties the two"));
      }
    } else if (options.allow_unexpected) {
      report.unexpected.push_back(name);
    } else {
      problems.add(kUnexpected, cat(name, " in ", source.info(name).file));
    }
  }
  for (const std::string& what : options.unused) problems.add(kUnexpected, what);
}

struct Wanted {
  Param* param;
  ElementRange range;
};

std::vector<Wanted> wanted_ranges(const std::vector<Param*>& params, const TensorSource& source,
                                  const LoadOptions& options) {
  std::vector<Wanted> out;
  for (Param* param : params) {
    if (!source.contains(param->spec.name)) continue;  // allowed to be missing
    out.push_back(
        {param, options.range ? options.range(*param) : ElementRange{0, param->spec.numel()}});
  }
  return out;
}

// Keeps the disk busy while weights are checked and sent on: what comes next is asked for, by a
// thread because the system walks over every page of it, also where all are there.
class ReadAhead {
 public:
  ReadAhead(const std::vector<Wanted>& all, const TensorSource& source)
      : all_(all), source_(source), thread_([this] { run(); }) {}
  ~ReadAhead() {
    reach(all_.size());
    thread_.join();
  }
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // Those before `index` have been read.
  void reach(size_t index) {
    {
      const std::lock_guard lock(mutex_);
      for (; reached_ < index; ++reached_) ahead_ -= bytes(reached_).second;
    }
    moved_.notify_one();
  }

 private:
  void run() {
    constexpr int64_t kAhead = int64_t{512} << 20;
    for (size_t i = 0; i < all_.size(); ++i) {
      const auto [begin, size] = bytes(i);
      {
        std::unique_lock lock(mutex_);
        moved_.wait(lock, [&] { return ahead_ < kAhead; });
        ahead_ += size;
        if (reached_ > i) continue;  // too late to help
      }
      source_.will_read(all_[i].param->spec.name, static_cast<uint64_t>(begin),
                        static_cast<uint64_t>(size));
    }
  }

  std::pair<int64_t, int64_t> bytes(size_t index) const {
    const auto& [param, range] = all_[index];
    const auto element = static_cast<int64_t>(at::elementSize(source_.info(param->spec.name).type));
    return {range.first * element, range.count * element};
  }

  const std::vector<Wanted>& all_;
  const TensorSource& source_;
  std::mutex mutex_;
  std::condition_variable moved_;
  size_t reached_ = 0;
  int64_t ahead_ = 0;  // bytes asked for less those read
  std::thread thread_;
};

void default_sink(Param& param, const at::Tensor& value, at::ScalarType dtype) {
  if (param.value.defined()) {
    param.value.copy_(value);
  } else {
    param.value = value.to(dtype, /*non_blocking=*/false, /*copy=*/true);
  }
}

}  // namespace

void compare_weights(const std::vector<Param*>& params, const TensorSource& source,
                     const LoadOptions& options) {
  LoadReport report;
  Problems problems;
  compare(params, source, options, report, problems);
  problems.throw_if_any(source.description(), params.size(), options.advice);
}

LoadReport load_weights(const std::vector<Param*>& params, const TensorSource& source,
                        const LoadOptions& options, const WeightSink& sink) {
  const at::NoGradGuard no_grad;
  LoadReport report;
  Problems problems;
  compare(params, source, options, report, problems);
  problems.throw_if_any(source.description(), params.size(), options.advice);
  const std::vector<Wanted> all = wanted_ranges(params, source, options);
  ReadAhead ahead(all, source);
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& [param, range] = all[i];
    const std::string& name = param->spec.name;
    ahead.reach(i);
    at::Tensor value = source.read(name);
    if (options.range) value = value.view(-1).narrow(0, range.first, range.count);
    if (options.check_finite && !all_finite(value)) {
      problems.add("with NaN or infinity",
                   cat(name, " in ", source.info(name).file, ": ", count_non_finite(value)));
      continue;
    }
    const at::ScalarType wanted =
        param->value.defined() ? param->value.scalar_type() : options.dtype;
    report.converted += wanted != value.scalar_type();
    report.bytes += value.nbytes();
    ++report.loaded;
    if (sink) {
      if (range.count > 0) sink(*param, range.first, value);
    } else {
      default_sink(*param, value, options.dtype);
    }
  }
  problems.throw_if_any(source.description(), params.size(), options.advice);
  return report;
}

}  // namespace mgm
