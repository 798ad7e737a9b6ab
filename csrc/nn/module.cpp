#include "nn/module.h"

namespace mgm {

Param& Module::declare(const std::string& name, std::vector<int64_t> shape, Init init, bool decay) {
  auto param = std::make_unique<Param>();
  param->spec = {name.empty() ? prefix_ : child_name(name), std::move(shape), init, group_, decay};
  Param& reference = *param;
  items_.push_back({std::move(param), nullptr});
  return reference;
}

std::vector<Param*> Module::params() const {
  std::vector<Param*> out;
  collect(out);
  return out;
}

void Module::collect(std::vector<Param*>& out) const {
  for (const Item& item : items_) {
    if (item.param) {
      out.push_back(item.param.get());
    } else {
      item.child->collect(out);
    }
  }
}

}  // namespace mgm
