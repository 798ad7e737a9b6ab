#include "formats/torch_file.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "formats/crc32.h"
#include "formats/dtype.h"
#include "formats/pickle.h"

namespace mgm {
namespace {

// "<folder>/data.pkl" in the outermost folder; torch names the folder after the file.
const ZipEntry& find_pickle(const std::vector<ZipEntry>& entries, const std::string& source) {
  for (const ZipEntry& entry : entries) {
    const size_t slash = entry.name.find('/');
    if (slash != entry.name.npos && entry.name.substr(slash) == "/data.pkl") return entry;
  }
  throw CheckpointError(source, ": a zip archive without data.pkl is no file of torch.save");
}

// Elements from the first to the last one of a strided tensor.
uint64_t extent(const PickledTensor& t, const std::string& where) {
  int64_t last = 0;
  for (size_t i = 0; i < t.shape.size(); ++i) {
    int64_t reach = 0;
    if (t.shape[i] < 0 || t.stride[i] < 0)
      throw CheckpointError(where, ": negative size or stride");
    if (t.shape[i] == 0) return 0;
    if (__builtin_mul_overflow(t.shape[i] - 1, t.stride[i], &reach) ||
        __builtin_add_overflow(last, reach, &last)) {
      throw CheckpointError(where, ": impossible shape and stride");
    }
  }
  return static_cast<uint64_t>(last) + 1;
}

TorchTensor place(const PickledTensor& t, const std::map<std::string, const ZipEntry*>& entries,
                  const std::string& folder, const std::string& source) {
  const std::string where = cat(source, ": tensor '", t.name, "'");
  const auto storage = entries.find(folder + "data/" + t.storage);
  if (storage == entries.end()) {
    throw CheckpointError(where, ": its storage '", t.storage, "' is not in the archive");
  }
  const size_t size = dtype_bytes(t.dtype);
  const uint64_t begin = storage->second->begin;
  const uint64_t held = (storage->second->end - begin) / size;  // elements
  const auto bytes = shape_bytes(t.shape, size);
  const uint64_t reach = extent(t, where);
  // More elements than stored means an expanded view: a few bytes that ask for any amount of
  // memory.
  if (!bytes || *bytes / size > held || reach > held || t.offset > held - reach) {
    throw CheckpointError(where, ": elements ", t.offset, " to ", t.offset + reach,
                          " of a storage that holds ", held,
                          ": the file is damaged, or the tensor an expanded view");
  }
  return {t.name, t.dtype, t.shape, t.stride, begin + t.offset * size};
}

}  // namespace

TorchFile parse_torch_file(std::string_view file, const std::string& source) {
  const std::vector<ZipEntry> list = parse_zip(file, source);
  const ZipEntry& pickle = find_pickle(list, source);
  const std::string folder = pickle.name.substr(0, pickle.name.find('/') + 1);
  std::map<std::string, const ZipEntry*> entries;
  for (const ZipEntry& entry : list) entries[entry.name] = &entry;
  const auto order = entries.find(folder + "byteorder");  // absent before torch 2.1
  if (order != entries.end() &&
      file.substr(order->second->begin, order->second->end - order->second->begin) != "little") {
    throw CheckpointError(source,
                          ": written on a big-endian machine, which is not read; "
                          "convert it to safetensors there");
  }
  const PickledState state =
      parse_state_pickle(file.substr(pickle.begin, pickle.end - pickle.begin), source);
  TorchFile out;
  for (const PickledTensor& t : state.tensors) {
    out.tensors.push_back(place(t, entries, folder, source));
  }
  out.other_values = state.other_values;
  return out;
}

TorchFileLayout::TorchFileLayout(std::vector<TorchFileEntry> tensors)
    : tensors_(std::move(tensors)) {}

std::string TorchFileLayout::begin() {
  std::vector<PickledTensor> pickled;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TorchFileEntry& t = tensors_[i];
    PickledTensor p{t.name, t.dtype, std::to_string(i),
                    0,      t.shape, std::vector<int64_t>(t.shape.size(), 1)};
    for (size_t d = t.shape.size(); d > 1; --d) {
      p.stride[d - 2] = p.stride[d - 1] * std::max<int64_t>(t.shape[d - 1], 1);
    }
    pickled.push_back(std::move(p));
  }
  const std::string pickle = make_state_pickle(pickled);
  std::string out = zip_.header("archive/data.pkl", pickle.size(), crc32(pickle)) + pickle;
  const std::string order = "little";
  return out + zip_.header("archive/byteorder", order.size(), crc32(order)) + order;
}

std::string TorchFileLayout::before(size_t i, uint64_t bytes, uint32_t crc) {
  const TorchFileEntry& t = tensors_.at(i);
  MGM_CHECK(shape_bytes(t.shape, dtype_bytes(t.dtype)) == bytes, "tensor '", t.name, "' has ",
            bytes, " bytes");
  return zip_.header(cat("archive/data/", i), bytes, crc);
}

std::string TorchFileLayout::end() {
  const std::string version = "3\n";
  const std::string out = zip_.header("archive/version", version.size(), crc32(version)) + version;
  return out + zip_.end();
}

}  // namespace mgm
