#include "assemble/merge_adapter.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "assemble/adapter_dir.h"
#include "assemble/hf_config.h"
#include "base/error.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/mm_projector_file.h"
#include "checkpoint/weight_loader.h"
#include "model/adapters.h"

namespace mgm {
namespace {

std::string weight_of(const std::string& linear) { return linear + ".weight"; }
std::string linear_of(const std::string& weight) {
  return weight.substr(0, weight.size() - weight_of("").size());
}
std::string a_of(const std::string& linear) { return linear + ".lora_A.weight"; }
std::string b_of(const std::string& linear) { return linear + ".lora_B.weight"; }

bool is_bridge_or_tower(const std::string& name) {
  return is_projector_or_mining(name) || name.starts_with("model.vision_tower");
}

// Whether its directory says what model the base and these parts make together.
bool names_a_whole_model(const fs::path& adapter) {
  const fs::path config = adapter / "config.json";
  return fs::exists(config) && read_config_json(config).contains("mm_vision_tower");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const int64_t size : shape) sizes.push_back(std::to_string(size));
  return cat("[", join(sizes, ", "), "]");
}

}  // namespace

AdapterMerge::AdapterMerge(SourcePtr base, const fs::path& adapter)
    : base_(std::move(base)),
      adapter_(open_adapter_layers(adapter, /*tied_embeddings=*/!base_->contains(kHeadWeight))) {
  const AdapterConfig config = read_adapter_config(adapter);
  scale_ = adapter_scale(config);
  std::vector<std::string> problems;
  for (const std::string& linear : config.targets) {
    check(linear, config.rank, problems);
    folded_.insert(weight_of(linear));
  }
  const bool whole_model = names_a_whole_model(adapter);
  for (const std::string& name : adapter_.names()) {
    if (is_adapter_weight(name)) continue;
    if (whole_model && !base_->contains(name) && is_bridge_or_tower(name)) {
      added_.insert(name);
      continue;
    }
    if (!base_->contains(name)) {
      problems.push_back(name + ": the model has no such tensor");
    } else if (base_->info(name).shape != adapter_.info(name).shape) {
      problems.push_back(cat(name, ": is ", shape_text(adapter_.info(name).shape),
                             ", the model's is ", shape_text(base_->info(name).shape)));
    }
    replaced_.insert(name);
  }
  names_ = base_->names();
  names_.insert(names_.end(), added_.begin(), added_.end());
  std::sort(names_.begin(), names_.end());
  if (problems.empty()) {
    std::vector<std::string> linears;
    for (const std::string& name : base_->names()) {
      if (name.ends_with(weight_of(""))) linears.push_back(linear_of(name));
    }
    check_adapter_is_whole(adapter, linears);
    return;
  }
  constexpr size_t kShown = 12;
  const size_t more = problems.size() - std::min(problems.size(), kShown);
  problems.resize(problems.size() - more);
  if (more > 0) problems.push_back(cat("and ", more, " more"));
  throw CheckpointError(adapter.string(), ": does not belong to ", base_->description(), ":\n  ",
                        join(problems, "\n  "));
}

void AdapterMerge::check(const std::string& linear, int64_t rank,
                         std::vector<std::string>& problems) const {
  for (const std::string& half : {a_of(linear), b_of(linear)}) {
    if (!adapter_.contains(half)) return problems.push_back(half + ": is missing");
  }
  if (!base_->contains(weight_of(linear))) {
    return problems.push_back(weight_of(linear) + ": the model has no such tensor");
  }
  const auto &w = base_->info(weight_of(linear)).shape, &a = adapter_.info(a_of(linear)).shape,
             &b = adapter_.info(b_of(linear)).shape;
  if (w.size() == 2 && a == std::vector{rank, w[1]} && b == std::vector{w[0], rank}) return;
  problems.push_back(cat(linear, ": A is ", shape_text(a), ", B ", shape_text(b), " and r ", rank,
                         ", the model's weight ", shape_text(w)));
}

at::Tensor AdapterMerge::read(const std::string& name) const {
  if (added_.count(name) > 0) return adapter_.read(name);
  const at::Tensor below = replaced_.count(name) > 0 ? adapter_.read(name) : base_->read(name);
  if (folded_.count(name) == 0) return below;
  const std::string linear = linear_of(name);
  // A copy in any case: what is read may be a page of the file.
  at::Tensor sum = below.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  sum.addmm_(adapter_.read(b_of(linear)).to(at::kFloat), adapter_.read(a_of(linear)).to(at::kFloat),
             /*beta=*/1, scale_);
  if (at::isfinite(sum).all().item<bool>()) return sum;
  throw CheckpointError(adapter_.info(a_of(linear)).file, ": folded into '", name,
                        "' it gives NaN or infinity: the adapter or the weight holds some");
}

}  // namespace mgm
