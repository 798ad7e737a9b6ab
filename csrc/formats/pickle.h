// The pickles inside torch files, as data: a state dict's names, dtypes, shapes and storages.
// Nothing is ever executed; a global that is not on the short list of what torch.save uses for
// tensors is refused by name. Reads protocols 2 to 5, writes protocol 2. Source: CPython
// Lib/pickletools.py, torch/_utils.py.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mgm {

struct PickledTensor {
  std::string name;     // keys of nested dicts joined by '.'
  std::string dtype;    // formats/dtype.h
  std::string storage;  // the entry "data/<storage>" of the archive
  uint64_t offset = 0;  // elements into the storage
  std::vector<int64_t> shape;
  std::vector<int64_t> stride;  // elements
};

struct PickledState {
  std::vector<PickledTensor> tensors;     // in the order of the dicts
  std::vector<std::string> other_values;  // names of what is no tensor: numbers, text, lists, ...
};

// Reads a dict (or OrderedDict) of tensors, Parameters and further dicts. Throws CheckpointError
// naming `source`: a foreign global, a malformed, cut or unreasonably large pickle, a name twice.
PickledState parse_state_pickle(std::string_view pickle, const std::string& source);

// A flat dict name -> tensor. Python's torch.load(weights_only=True) reads it. dtypes: those that
// have a torch storage class (no unsigned beyond U8, no F8).
std::string make_state_pickle(const std::vector<PickledTensor>& tensors);

}  // namespace mgm
