#include "checkpoint/gguf_source.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "base/error.h"
#include "base/file_access.h"
#include "checkpoint/gguf_config.h"
#include "checkpoint/gguf_names.h"
#include "checkpoint/weight_file.h"
#include "formats/dtype.h"
#include "formats/gguf.h"

namespace mgm {
namespace {

// A mapped file and what its header says.
struct OpenGguf {
  std::string path;
  std::shared_ptr<MappedFile> mapped;
  GgufFile file;
};

std::shared_ptr<const OpenGguf> open_file(const fs::path& path) {
  auto out = std::make_shared<OpenGguf>();
  out->path = path.string();
  out->mapped = map_weight_file(path);
  out->file = parse_gguf(bytes_of(*out->mapped), out->path);
  const auto parts = out->file.metadata.find("split.count");
  if (parts != out->file.metadata.end() && parts->second.integer().value_or(2) > 1) {
    throw CheckpointError(out->path,
                          ": is one part of a split model; join the parts with "
                          "llama-gguf-split --merge (llama.cpp)");
  }
  return out;
}

// Elements [first, first + count) of a tensor; whole blocks.
at::Tensor unpack(const OpenGguf& gguf, const GgufTensor& t, int64_t first, int64_t count) {
  const uint8_t* bytes =
      gguf.mapped->data() + t.begin + static_cast<uint64_t>(first) / t.type.block * t.type.bytes;
  if (!t.type.dtype.empty()) {
    at::Tensor out = at::empty({count}, scalar_type(std::string(t.type.dtype)));
    std::copy_n(bytes, out.nbytes(), static_cast<uint8_t*>(out.data_ptr()));
    return out;
  }
  at::Tensor out = at::empty({count}, at::kFloat);
  auto* values = out.mutable_data_ptr<float>();
  constexpr int64_t kGrain = 1024;  // blocks that are worth a thread
  at::parallel_for(0, count / t.type.block, kGrain, [&](int64_t begin, int64_t end) {
    dequantise(t.type, bytes + begin * t.type.bytes,
               static_cast<size_t>(end - begin) * t.type.block, values + begin * t.type.block);
  });
  return out;
}

// Where a weight comes from: `first` elements into a tensor of the file.
struct Part {
  size_t tensor;
  int64_t first;
  GgufUndo undo;
  TensorInfo info;
};

class GgufSource : public TensorSource {
 public:
  explicit GgufSource(std::shared_ptr<const OpenGguf> gguf) : gguf_(std::move(gguf)) {}

  void add(const std::string& name, size_t tensor, int64_t first, std::vector<int64_t> shape,
           GgufUndo undo) {
    const GgufTensor& t = gguf_->file.tensors[tensor];
    const std::string dtype = t.type.dtype.empty() ? "F32" : std::string(t.type.dtype);
    const auto bytes = shape_bytes(shape, dtype_bytes(dtype));
    if (!bytes) throw CheckpointError(gguf_->path, ": tensor '", t.name, "' is too large");
    TensorInfo info{std::string(t.type.name), scalar_type(dtype), std::move(shape), *bytes,
                    gguf_->path};
    if (!parts_.emplace(name, Part{tensor, first, undo, std::move(info)}).second) {
      throw CheckpointError(gguf_->path, ": two tensors are both '", name, "'");
    }
  }
  void finish(int64_t heads, int64_t kv_heads) {
    heads_ = heads;
    kv_heads_ = kv_heads;
    for (const auto& [name, part] : parts_) names_.push_back(name);
  }

  std::string description() const override { return gguf_->path; }
  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override { return parts_.count(name) > 0; }
  const TensorInfo& info(const std::string& name) const override { return find(name).info; }

  at::Tensor read(const std::string& name) const override {
    const Part& part = find(name);
    const GgufTensor& t = gguf_->file.tensors[part.tensor];
    if (!can_dequantise(t.type) && t.type.dtype.empty()) {
      throw CheckpointError(gguf_->path, ": tensor '", t.name, "' is of type ", t.type.name,
                            ", which cannot be unpacked");
    }
    int64_t count = 1;
    for (const int64_t size : part.info.shape) count *= size;
    const at::Tensor stored = unpack(*gguf_, t, part.first, count).view(part.info.shape);
    switch (part.undo) {
      case GgufUndo::kNone:
        return stored;
      case GgufUndo::kPlusOne:
        return stored - 1;
      case GgufUndo::kRowsOfHeads:
        return halves(stored, heads_, t.name);
      case GgufUndo::kRowsOfKvHeads:
        return halves(stored, kv_heads_, t.name);
    }
    throw InternalError("GgufUndo");
  }

 private:
  const Part& find(const std::string& name) const {
    const auto it = parts_.find(name);
    if (it == parts_.end()) {
      throw CheckpointError(gguf_->path, ": holds no tensor '", name, "'");
    }
    return it->second;
  }

  // llama.cpp rotates neighbouring rows of a head, Hugging Face a row and the one half a head on.
  at::Tensor halves(const at::Tensor& stored, int64_t heads, const std::string& name) const {
    const int64_t rows = stored.size(0);
    if (heads <= 0 || rows == 0 || rows % (2 * heads) != 0) {
      throw CheckpointError(gguf_->path, ": tensor '", name, "' has ", rows, " rows for ", heads,
                            " heads");
    }
    return stored.reshape({heads, rows / heads / 2, 2, -1})
        .transpose(1, 2)
        .reshape(stored.sizes())
        .contiguous();
  }

  std::shared_ptr<const OpenGguf> gguf_;
  std::map<std::string, Part> parts_;
  std::vector<std::string> names_;
  int64_t heads_ = 0, kv_heads_ = 0;
};

class PackedGguf : public TensorSource {
 public:
  explicit PackedGguf(std::shared_ptr<const OpenGguf> gguf) : gguf_(std::move(gguf)) {
    for (const GgufTensor& t : gguf_->file.tensors) {
      TensorInfo info{std::string(t.type.name), at::kByte, t.shape, t.end - t.begin, gguf_->path};
      places_.emplace(t.name, Place{t.begin, std::move(info)});
    }
    for (const auto& [name, place] : places_) names_.push_back(name);
  }
  std::string description() const override { return gguf_->path; }
  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override { return places_.count(name) > 0; }
  const TensorInfo& info(const std::string& name) const override { return find(name).info; }
  at::Tensor read(const std::string& name) const override {
    const Place& place = find(name);
    // read() is for reading only, as of every mapped file.
    auto* bytes = const_cast<uint8_t*>(gguf_->mapped->data() + place.begin);
    return at::from_blob(
        bytes, {static_cast<int64_t>(place.info.bytes)}, [held = gguf_](void*) {}, at::kByte);
  }

 private:
  struct Place {
    uint64_t begin;
    TensorInfo info;
  };
  const Place& find(const std::string& name) const {
    const auto it = places_.find(name);
    if (it != places_.end()) return it->second;
    throw CheckpointError(gguf_->path, ": holds no tensor '", name, "'");
  }

  std::shared_ptr<const OpenGguf> gguf_;
  std::map<std::string, Place> places_;
  std::vector<std::string> names_;
};

// One weight per expert, or one in all.
void add_weights(GgufSource& out, size_t index, const GgufTensor& t, const GgufTarget& target,
                 const std::string& path) {
  if (!target.experts) {
    if (t.shape.empty() && target.undo != GgufUndo::kNone) {
      throw CheckpointError(path, ": tensor '", t.name, "' is a single number");
    }
    out.add(target.name, index, 0, t.shape, target.undo);
    return;
  }
  if (t.shape.size() != 3) {
    throw CheckpointError(path, ": tensor '", t.name, "' has ", t.shape.size(),
                          " dimensions, stacked experts have 3");
  }
  constexpr int64_t kMostExperts = 4096;  // a tensor without elements can claim any number
  if (t.shape[0] > kMostExperts) {
    throw CheckpointError(path, ": tensor '", t.name, "' stacks ", t.shape[0],
                          " experts, more than ", kMostExperts);
  }
  for (int64_t expert = 0; expert < t.shape[0]; ++expert) {
    out.add(replace_all(target.name, "{}", std::to_string(expert)), index,
            expert * t.shape[1] * t.shape[2], {t.shape[1], t.shape[2]}, target.undo);
  }
}

int64_t metadata_integer(const OpenGguf& gguf, const std::string& key, int64_t fallback) {
  const auto it = gguf.file.metadata.find(key);
  if (it == gguf.file.metadata.end()) return fallback;
  return it->second.integer().value_or(fallback);
}

}  // namespace

bool is_gguf_file(const fs::path& file) {
  if (file.extension() == ".gguf" && fs::is_regular_file(file)) return true;
  try {
    return is_gguf(read_beginning(file, 4));
  } catch (const DataError&) {  // whoever opens it says why
    return false;
  }
}

std::vector<fs::path> gguf_files(const fs::path& dir) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (entry.path().extension() == ".gguf") out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

SourcePtr open_gguf_as_stored(const fs::path& path) {
  const auto gguf = open_file(path);
  auto out = std::make_shared<GgufSource>(gguf);
  for (size_t i = 0; i < gguf->file.tensors.size(); ++i) {
    const GgufTensor& t = gguf->file.tensors[i];
    out->add(t.name, i, 0, t.shape, GgufUndo::kNone);
  }
  out->finish(0, 0);
  return out;
}

SourcePtr open_gguf_packed(const fs::path& path) {
  return std::make_shared<PackedGguf>(open_file(path));
}

SourcePtr open_gguf(const fs::path& path) {
  const auto gguf = open_file(path);
  const std::string architecture = gguf_architecture(gguf->file, gguf->path);
  auto out = std::make_shared<GgufSource>(gguf);
  std::vector<std::string> unknown, unreadable;
  for (size_t i = 0; i < gguf->file.tensors.size(); ++i) {
    const GgufTensor& t = gguf->file.tensors[i];
    if (is_gguf_config_tensor(t.name)) continue;
    if (const auto target = map_gguf_name(architecture, t.name)) {
      add_weights(*out, i, t, *target, gguf->path);
    } else {
      unknown.push_back(t.name);
    }
    if (t.type.dtype.empty() && !can_dequantise(t.type)) {
      unreadable.push_back(cat(t.name, " (", t.type.name, ")"));
    }
  }
  if (!unknown.empty()) {
    throw CheckpointError(gguf->path, ": ", unknown.size(), " tensors have no place in a ",
                          architecture, " model: ", join(unknown, ", "));
  }
  if (!unreadable.empty()) {
    throw CheckpointError(gguf->path, ": ", unreadable.size(),
                          " tensors are of types that cannot be unpacked (F32, F16, BF16, Q8_0, "
                          "Q4_0, Q4_1, Q4_K and Q6_K can): ",
                          join(unreadable, ", "));
  }
  const int64_t heads = metadata_integer(*gguf, architecture + ".attention.head_count", 0);
  out->finish(heads, metadata_integer(*gguf, architecture + ".attention.head_count_kv", heads));
  return out;
}

GgufConfigs read_gguf_configs(const fs::path& path) {
  const auto gguf = open_file(path);
  const SourcePtr stored = open_gguf_as_stored(path);
  const auto floats = [&](const std::string& name) {
    const at::Tensor values = stored->read(name).to(at::kFloat);
    const auto* data = values.const_data_ptr<float>();
    return std::vector<float>(data, data + values.numel());
  };
  return {gguf_to_hf_config(gguf->file, gguf->path, floats), gguf_generation_config(gguf->file)};
}

}  // namespace mgm
