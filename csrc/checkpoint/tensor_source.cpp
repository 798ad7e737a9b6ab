#include "checkpoint/tensor_source.h"

#include <ATen/ATen.h>

#include <sys/mman.h>

#include <cstring>

#include "base/error.h"
#include "base/log_once.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/gguf_source.h"
#include "checkpoint/weight_file.h"
#include "formats/dtype.h"
#include "formats/safetensors.h"
#include "formats/shard_index.h"
#include "formats/torch_file.h"

namespace mgm {
namespace {

constexpr std::pair<const char*, at::ScalarType> kTypes[] = {
    {"F64", at::kDouble},         {"F32", at::kFloat},
    {"F16", at::kHalf},           {"BF16", at::kBFloat16},
    {"I64", at::kLong},           {"I32", at::kInt},
    {"I16", at::kShort},          {"I8", at::kChar},
    {"U64", at::kUInt64},         {"U32", at::kUInt32},
    {"U16", at::kUInt16},         {"U8", at::kByte},
    {"BOOL", at::kBool},          {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2}};

constexpr uint64_t kPage = 4096;  // a mapping begins at one

[[noreturn]] void not_there(const std::string& name, const std::string& where) {
  throw CheckpointError(where, ": holds no tensor '", name, "'");
}

// Tensors of one mapped file. Strides are in elements; empty means contiguous.
class MappedSource : public TensorSource {
 public:
  MappedSource(const fs::path& path, std::shared_ptr<MappedFile> file)
      : path_(path.string()), file_(std::move(file)) {}

  void add(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
           const std::vector<int64_t>& stride, uint64_t begin) {
    const uint64_t bytes = *shape_bytes(shape, dtype_bytes(dtype));  // checked by the parser
    entries_[name] = {{dtype, scalar_type(dtype), shape, bytes, path_}, stride, begin};
  }
  void add_not_tensor(const std::string& name) { not_tensors_.push_back(cat(path_, ": ", name)); }
  void index_names() {
    for (const auto& [name, entry] : entries_) names_.push_back(name);
  }

  std::string description() const override { return path_; }
  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override { return entries_.count(name) > 0; }
  const TensorInfo& info(const std::string& name) const override { return find(name).info; }
  std::vector<std::string> not_tensors() const override { return not_tensors_; }

  at::Tensor read(const std::string& name) const override {
    const Entry& entry = find(name);
    if (entry.info.bytes == 0) return at::empty(entry.info.shape, entry.info.type);
    auto* data = const_cast<uint8_t*>(file_->data()) + entry.begin;
    // Only foreign writers leave tensors unaligned; kernels may assume they are not.
    if (reinterpret_cast<uintptr_t>(data) % dtype_bytes(entry.info.dtype) != 0) {
      if (!entry.stride.empty()) {
        throw CheckpointError(path_, ": tensor '", name, "' is strided and not aligned");
      }
      at::Tensor copy = at::empty(entry.info.shape, entry.info.type);
      std::memcpy(copy.data_ptr(), data, entry.info.bytes);
      return copy;
    }
    const auto keep_open = [file = file_](void*) {};
    if (entry.stride.empty()) {
      return at::from_blob(data, entry.info.shape, keep_open, at::dtype(entry.info.type));
    }
    return at::from_blob(data, entry.info.shape, entry.stride, keep_open,
                         at::dtype(entry.info.type))
        .contiguous();
  }

  void will_read(const std::string& name, uint64_t begin, uint64_t size) const override {
    const Entry& entry = find(name);
    if (!entry.stride.empty() || size == 0) return;
    const uint64_t from = (entry.begin + begin) / kPage * kPage;
    ::madvise(const_cast<uint8_t*>(file_->data()) + from, entry.begin + begin + size - from,
              MADV_WILLNEED);  // advice: without it reading is only slower
  }

 private:
  struct Entry {
    TensorInfo info;
    std::vector<int64_t> stride;
    uint64_t begin;
  };
  const Entry& find(const std::string& name) const {
    const auto it = entries_.find(name);
    if (it == entries_.end()) not_there(name, path_);
    return it->second;
  }

  std::string path_;
  std::shared_ptr<MappedFile> file_;
  std::map<std::string, Entry> entries_;
  std::vector<std::string> names_, not_tensors_;
};

// In the order of memory without gaps; the stride of a size of 1 says nothing.
bool is_contiguous(const TorchTensor& t) {
  int64_t step = 1;
  for (size_t i = t.shape.size(); i-- > 0;) {
    if (t.shape[i] != 1 && t.stride[i] != step) return false;
    step *= t.shape[i];
  }
  return true;
}

std::string first_lines(const std::vector<std::string>& names) {
  constexpr size_t kShown = 10;
  std::string out;
  for (size_t i = 0; i < names.size() && i < kShown; ++i) out += "\n  " + names[i];
  if (names.size() > kShown) out += cat("\n  ... and ", names.size() - kShown, " more");
  return out;
}

// Index and shards name the same tensors, or something was lost on the way.
void check_index(const ShardIndex& index, const std::map<std::string, SourcePtr>& shards,
                 const std::string& source) {
  std::vector<std::string> wrong;
  for (const auto& [name, file] : index.weight_map) {
    if (!shards.at(file)->contains(name) && !is_unused_buffer(name)) {
      wrong.push_back(cat(name, ": not in ", file));
    }
  }
  for (const auto& [file, shard] : shards) {
    for (const std::string& name : shard->names()) {
      if (is_unused_buffer(name)) continue;
      const auto it = index.weight_map.find(name);
      if (it == index.weight_map.end()) {
        wrong.push_back(cat(name, ": in ", file, ", not in the index"));
      } else if (it->second != file) {
        wrong.push_back(cat(name, ": in ", file, ", the index says ", it->second));
      }
    }
  }
  if (!wrong.empty()) {
    throw CheckpointError(
        source, ": index and shards disagree on ", wrong.size(),
        " tensors; a shard is of another model or not whole:", first_lines(wrong));
  }
}

// transformers would put it on the model; here an adapter is named.
void refuse_adapter_beside(const fs::path& dir) {
  for (const char* file : {kAdapterFile, "adapter_model.bin"}) {
    if (!fs::exists(dir / kAdapterConfig) || !fs::exists(dir / file)) continue;
    throw CheckpointError(dir.string(), ": holds a model and an adapter (", kAdapterConfig, ", ",
                          file, "); move the adapter to a folder of its own and name it with ",
                          "--adapter or model.adapter.path, or remove it");
  }
}

// Whether it is there; a link to nowhere is half a download, not another file's turn.
bool is_there(const fs::path& file) {
  if (fs::exists(file)) return true;
  if (!fs::is_symlink(file)) return false;
  throw CheckpointError(file.string(), ": is a link to ", fs::read_symlink(file).string(),
                        ", which is not there: an incomplete download?");
}

}  // namespace

at::ScalarType scalar_type(const std::string& dtype) {
  for (const auto& [name, type] : kTypes) {
    if (dtype == name) return type;
  }
  throw CheckpointError("dtype '", dtype, "' is not known");
}

std::string dtype_name(at::ScalarType type) {
  for (const auto& [name, known] : kTypes) {
    if (type == known) return name;
  }
  throw CheckpointError("dtype ", at::toString(type), " has no place in weight files");
}

bool is_unused_buffer(const std::string& name) {
  return name.ends_with(".embeddings.position_ids") || name.ends_with(".rotary_emb.inv_freq");
}

void TensorSource::read_range(const std::string& name, uint64_t begin, uint64_t size,
                              void* out) const {
  const uint64_t bytes = info(name).bytes;
  MGM_CHECK(begin <= bytes && size <= bytes - begin, "bytes ", begin, " + ", size, " of '", name,
            "', which has ", bytes);
  if (size == 0) return;
  const at::Tensor tensor = read(name);
  std::memcpy(out, static_cast<const char*>(tensor.const_data_ptr()) + begin, size);
}

bool equal_tensors(const TensorSource& source, const std::string& a, const std::string& b) {
  if (source.info(a).shape != source.info(b).shape) return false;
  const at::Tensor x = source.read(a), y = source.read(b);
  return x.scalar_type() == y.scalar_type() && at::equal(x, y);
}

SourcePtr open_safetensors(const fs::path& file) {
  const auto mapped = map_weight_file(file);
  const SafetensorsHeader header =
      parse_safetensors_header(bytes_of(*mapped), mapped->size(), file.string());
  auto out = std::make_shared<MappedSource>(file, mapped);
  for (const TensorEntry& t : header.tensors) out->add(t.name, t.dtype, t.shape, {}, t.begin);
  out->index_names();
  return out;
}

SourcePtr open_torch_file(const fs::path& file) {
  const auto mapped = map_weight_file(file);
  const TorchFile parsed = parse_torch_file(bytes_of(*mapped), file.string());
  auto out = std::make_shared<MappedSource>(file, mapped);
  for (const TorchTensor& t : parsed.tensors) {
    out->add(t.name, t.dtype, t.shape, is_contiguous(t) ? std::vector<int64_t>() : t.stride,
             t.begin);
  }
  for (const std::string& name : parsed.other_values) out->add_not_tensor(name);
  out->index_names();
  return out;
}

SourcePtr open_tensor_file(const fs::path& file) {
  const auto mapped = map_weight_file(file);
  const std::string_view bytes = bytes_of(*mapped);
  // The first bytes say what a file is; where they say nothing it is damaged, and the reader that
  // its name asks for explains.
  if (is_gguf_file(file)) return open_gguf(file);
  const fs::path kind = file.extension();
  if (kind == ".safetensors") return open_safetensors(file);
  // "PK\3\4", or the first byte of a legacy torch file, which the torch reader explains.
  if (bytes.starts_with("PK") || bytes.starts_with("\x80")) return open_torch_file(file);
  const bool json_header = bytes.size() > 8 && bytes[8] == '{';
  const bool torch_name = kind == ".bin" || kind == ".pt" || kind == ".pth";
  return torch_name && !json_header ? open_torch_file(file) : open_safetensors(file);
}

SourcePtr open_sharded(const fs::path& index_file) {
  std::string text;
  try {
    text = read_file(index_file);
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
  const ShardIndex index = parse_shard_index(text, index_file.string());
  std::map<std::string, SourcePtr> shards;
  std::vector<OverlayLayer> layers;
  for (const std::string& file : index.files()) {
    const SourcePtr shard = open_tensor_file(index_file.parent_path() / file);
    shards[file] = shard;
    layers.push_back({shard, {}});
  }
  check_index(index, shards, index_file.string());
  return std::make_shared<OverlaySource>(layers, index_file.string());
}

SourcePtr open_model_dir(const fs::path& dir) {
  if (fs::is_regular_file(dir) && is_gguf_file(dir)) return open_gguf(dir);
  if (!fs::is_directory(dir)) {
    throw CheckpointError(dir.string(), ": no such folder; weights are read from local paths only");
  }
  constexpr const char* kFiles[] = {"model.safetensors",           "model.safetensors.index.json",
                                    "pytorch_model.bin",           "pytorch_model.bin.index.json",
                                    "open_clip_model.safetensors", "open_clip_pytorch_model.bin"};
  for (const char* name : kFiles) {
    const fs::path file = dir / name;
    if (!is_there(file)) continue;
    refuse_adapter_beside(dir);
    const fs::path index = file.string() + ".index.json";
    if (fs::exists(index)) {
      log::warn_once(cat(index.string(), ": is not read, ", name, " is there too"));
    }
    return file.extension() == ".json" ? open_sharded(file) : open_tensor_file(file);
  }
  const std::vector<fs::path> ggufs = gguf_files(dir);
  if (ggufs.size() == 1) return open_gguf(ggufs[0]);
  if (!ggufs.empty()) {
    throw CheckpointError(dir.string(), ": holds ", ggufs.size(), " GGUF files (",
                          ggufs[0].filename().string(), ", ...); name one of them");
  }
  throw CheckpointError(dir.string(), ": holds no weights; looked for ",
                        join({std::begin(kFiles), std::end(kFiles)}, ", "), " and *.gguf");
}

OverlaySource::OverlaySource(const std::vector<OverlayLayer>& layers, std::string description)
    : description_(std::move(description)) {
  std::vector<std::string> descriptions;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [source, map] = layers[i];
    descriptions.push_back(source->description());
    for (const std::string& what : source->not_tensors()) not_tensors_.push_back(what);
    for (const std::string& name : source->names()) {
      const std::optional<std::string> ours = map ? map(name) : name;
      const std::string where = cat(source->info(name).file, ": ", name);
      if (!ours) {
        dropped_.push_back(where);
        continue;
      }
      const auto [it, fresh] = places_.try_emplace(*ours, Place{source, name, i});
      if (fresh) continue;
      Place& old = it->second;
      const std::string old_where = cat(old.source->info(old.name).file, ": ", old.name);
      if (old.layer == i) {
        throw CheckpointError(where, " and ", old_where, " are both '", *ours, "'");
      }
      covered_.push_back(old_where);
      old = {source, name, i};
    }
  }
  for (const auto& [name, place] : places_) names_.push_back(name);
  if (description_.empty()) description_ = join(descriptions, " + ");
}

const OverlaySource::Place& OverlaySource::place(const std::string& name) const {
  const auto it = places_.find(name);
  if (it == places_.end()) not_there(name, description_);
  return it->second;
}

const TensorInfo& OverlaySource::info(const std::string& name) const {
  const Place& p = place(name);
  return p.source->info(p.name);
}

void OverlaySource::will_read(const std::string& name, uint64_t begin, uint64_t size) const {
  const Place& p = place(name);
  p.source->will_read(p.name, begin, size);
}

at::Tensor OverlaySource::read(const std::string& name) const {
  const Place& p = place(name);
  return p.source->read(p.name);
}

}  // namespace mgm
