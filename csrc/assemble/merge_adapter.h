// A low-rank adapter in PEFT's layout folded into the weights it belongs to.
#pragma once

#include <set>
#include <string>

#include "checkpoint/tensor_source.h"

namespace mgm {

// The tensors of the base, by its names.
class AdapterMerge : public TensorSource {
 public:
  // Throws CheckpointError for another adapter than plain LoRA (assemble/adapter_dir.h) and, with a
  // list, where its tensors do not fit those of `base`. Where `base` is the language model alone of
  // a Mini-Gemini adapter, the adapter's other parts come beside it.
  AdapterMerge(SourcePtr base, const fs::path& adapter);

  // Weights that an adapter is folded into, and those that the directory replaces whole
  // (modules_to_save, non_lora_trainables).
  const std::set<std::string>& folded() const { return folded_; }
  const std::set<std::string>& replaced() const { return replaced_; }
  // Projector, mining and towers that only the adapter's directory holds: its config.json is then
  // that of the result.
  const std::set<std::string>& added() const { return added_; }

  std::string description() const override { return base_->description(); }
  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override {
    return added_.count(name) > 0 || base_->contains(name);
  }
  const TensorInfo& info(const std::string& name) const override {
    return added_.count(name) > 0 ? adapter_.info(name) : base_->info(name);
  }
  std::vector<std::string> not_tensors() const override { return base_->not_tensors(); }
  // W + scale B A in fp32 (the sum not rounded further), W the replaced one where there is one;
  // else the replaced one in the adapter's own type.
  at::Tensor read(const std::string& name) const override;

 private:
  void check(const std::string& linear, int64_t rank, std::vector<std::string>& problems) const;

  SourcePtr base_;
  OverlaySource adapter_;
  double scale_;
  std::set<std::string> folded_, replaced_, added_;
  std::vector<std::string> names_;
};

}  // namespace mgm
