// Module: declares parameters first, uses their storage later. Constructing a model allocates
// nothing; a run binds tensors to the declared Params (train/build.cpp, assemble/) and forward
// looks them up when it is called, so that a sharding engine may move storage between calls.
// torch::nn::Module can do neither.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "types/param.h"

namespace mgm {

class Module {
 public:
  // `prefix` is the published name of this module; `group` the ParamGroup its parameters live in.
  Module(std::string prefix, std::string group)
      : prefix_(std::move(prefix)), group_(std::move(group)) {}
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // Every parameter below this module, in declaration order. Pointers live as long as the module.
  std::vector<Param*> params() const;

  const std::string& prefix() const { return prefix_; }
  const std::string& group() const { return group_; }

 protected:
  // Declares prefix + "." + name (prefix alone when name is empty).
  Param& declare(const std::string& name, std::vector<int64_t> shape, Init init, bool decay);

  // Constructs a child module owned by this one.
  template <class M, class... Args>
  M& add(Args&&... args) {
    auto child = std::make_unique<M>(std::forward<Args>(args)...);
    M& reference = *child;
    items_.push_back({nullptr, std::move(child)});
    return reference;
  }

  std::string child_name(const std::string& name) const { return prefix_ + "." + name; }

 private:
  struct Item {  // a parameter or a child, in the order they were declared
    std::unique_ptr<Param> param;
    std::unique_ptr<Module> child;
  };
  void collect(std::vector<Param*>& out) const;

  std::string prefix_, group_;
  std::vector<Item> items_;
};

}  // namespace mgm
