// Names of low-rank adapters: as PEFT's lora.Linear has them, "<linear>.lora_A.weight" and
// "<linear>.lora_B.weight".
#pragma once

#include <string>

namespace mgm {

bool is_adapter_weight(const std::string& name);

}  // namespace mgm
