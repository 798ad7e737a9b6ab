#include "base/error.h"
#include "formats/dtype.h"
#include "formats/pickle.h"

namespace mgm {
namespace {

void put_text(std::string& out, const std::string& text) {
  const auto size = static_cast<uint32_t>(text.size());
  out += 'X';
  out.append(reinterpret_cast<const char*>(&size), 4);
  out += text;
}

void put_int(std::string& out, int64_t value) {
  if (value >= INT32_MIN && value <= INT32_MAX) {
    const auto narrow = static_cast<int32_t>(value);
    out += 'J';
    out.append(reinterpret_cast<const char*>(&narrow), 4);
  } else {
    out += "\x8a\x08";
    out.append(reinterpret_cast<const char*>(&value), 8);
  }
}

void put_ints(std::string& out, const std::vector<int64_t>& values) {
  out += '(';
  for (const int64_t value : values) put_int(out, value);
  out += 't';
}

std::string storage_class(const std::string& dtype) {
  for (const Dtype& row : dtypes()) {
    if (row.name == dtype && !row.torch_storage.empty()) {
      return std::string(row.torch_storage.substr(row.torch_storage.find('.') + 1));
    }
  }
  throw CheckpointError("dtype ", dtype, " cannot be written to a torch file; use safetensors");
}

}  // namespace

std::string make_state_pickle(const std::vector<PickledTensor>& tensors) {
  std::string out = "\x80\x02}(";
  for (const PickledTensor& t : tensors) {
    uint64_t numel = 1;  // unsigned: shapes without sense are the reader's to refuse
    for (const int64_t size : t.shape) numel *= static_cast<uint64_t>(size);
    put_text(out, t.name);
    out += "ctorch._utils\n_rebuild_tensor_v2\n((";
    put_text(out, "storage");
    out += "ctorch\n" + storage_class(t.dtype) + "\n";
    put_text(out, t.storage);
    put_text(out, "cpu");
    put_int(out, static_cast<int64_t>(t.offset + numel));
    out += "tQ";
    put_int(out, static_cast<int64_t>(t.offset));
    put_ints(out, t.shape);
    put_ints(out, t.stride);
    out += "\x89";                           // requires_grad False
    out += "ccollections\nOrderedDict\n)R";  // backward hooks
    out += "tR";
  }
  return out + "u.";
}

}  // namespace mgm
