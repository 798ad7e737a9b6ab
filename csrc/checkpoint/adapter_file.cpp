#include "checkpoint/adapter_file.h"

namespace mgm {

bool is_adapter_weight(const std::string& name) {
  return name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
}

}  // namespace mgm
