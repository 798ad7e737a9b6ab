// Named tensors and named blobs (tokenizer files, JSON): what checkpoints hand to assembly and
// back.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace mgm {

struct StateDict {
  std::map<std::string, at::Tensor> tensors;  // CPU tensors; may be views of a mapped file
  std::map<std::string, std::string> blobs;   // file name -> content
};

}  // namespace mgm
