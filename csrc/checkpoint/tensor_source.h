// Where weights come from: one interface over the files that hold named tensors. Opening reads
// headers only; a tensor's bytes are touched when it is asked for.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fs.h"

namespace mgm {

struct TensorInfo {
  std::string dtype;  // as stored: formats/dtype.h, or a GGUF type that read() unpacks, "Q4_K"
  at::ScalarType type = at::kFloat;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  std::string file;  // where it lies, for messages
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  TensorSource() = default;
  TensorSource(const TensorSource&) = delete;
  TensorSource& operator=(const TensorSource&) = delete;

  virtual std::string description() const = 0;                // the path
  virtual const std::vector<std::string>& names() const = 0;  // sorted
  virtual bool contains(const std::string& name) const = 0;
  // Both throw CheckpointError for a name that is not there.
  virtual const TensorInfo& info(const std::string& name) const = 0;
  // A contiguous CPU tensor. It may be a view of the mapped file, which it keeps open: READ ONLY,
  // writing to it ends the process. A file that another process cuts meanwhile does so too.
  virtual at::Tensor read(const std::string& name) const = 0;

  // Bytes [begin, begin + size) of the tensor will be read soon: the disk may start with them. Does
  // nothing where read() unpacks. May be called beside the others from another thread.
  virtual void will_read(const std::string& /*name*/, uint64_t /*begin*/, uint64_t /*size*/) const {
  }

  // Values of torch files that are no tensors (numbers, lists, ...), as "file: name"; callers
  // report them.
  virtual std::vector<std::string> not_tensors() const { return {}; }

  // Bytes [begin, begin + size) of the tensor as read() gives it; of a mapped file only these are
  // touched.
  void read_range(const std::string& name, uint64_t begin, uint64_t size, void* out) const;
};

using SourcePtr = std::shared_ptr<const TensorSource>;

// Buffers that old files carry and nobody needs: loading leaves them out.
bool is_unused_buffer(const std::string& name);

// Of one type, shape and value.
bool equal_tensors(const TensorSource& source, const std::string& a, const std::string& b);

// All throw CheckpointError naming the file. Torch files: formats/torch_file.h.
SourcePtr open_safetensors(const fs::path& file);
SourcePtr open_torch_file(const fs::path& file);
// By content: a zip archive is a torch file. GGUF: checkpoint/gguf_source.h.
SourcePtr open_tensor_file(const fs::path& file);
// The shards an index file names, each a safetensors or a torch file. Index and shards must name
// the same tensors.
SourcePtr open_sharded(const fs::path& index_file);
// A GGUF file, or a model directory: model.safetensors(.index.json),
// pytorch_model.bin(.index.json), open_clip_model.safetensors or open_clip_pytorch_model.bin, the
// first that is there, a whole file before an index, else its only *.gguf. A directory with an
// adapter beside the model is refused.
SourcePtr open_model_dir(const fs::path& dir);

// Our name of a file's tensor; nothing drops it.
using NameMap = std::function<std::optional<std::string>(const std::string&)>;

struct OverlayLayer {
  SourcePtr source;
  NameMap map;  // empty: names stay
};

// Several sources as one. A name of a later layer covers the same name of earlier ones. Two names
// of one layer that map to the same one are an error.
class OverlaySource : public TensorSource {
 public:
  // `description`: empty for that of every layer.
  explicit OverlaySource(const std::vector<OverlayLayer>& layers, std::string description = "");
  std::string description() const override { return description_; }
  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override { return places_.count(name) > 0; }
  const TensorInfo& info(const std::string& name) const override;
  at::Tensor read(const std::string& name) const override;
  void will_read(const std::string& name, uint64_t begin, uint64_t size) const override;
  std::vector<std::string> not_tensors() const override { return not_tensors_; }

  // What a caller reports: "file: name" of what maps dropped and of what later layers covered.
  const std::vector<std::string>& dropped() const { return dropped_; }
  const std::vector<std::string>& covered() const { return covered_; }
  // The layer that a name is read from, by its place in the list.
  size_t layer(const std::string& name) const { return place(name).layer; }

 private:
  struct Place {
    SourcePtr source;
    std::string name;
    size_t layer;
  };
  const Place& place(const std::string& name) const;

  std::string description_;
  std::vector<std::string> names_, dropped_, covered_, not_tensors_;
  std::map<std::string, Place> places_;
};

// "BF16" <-> at::kBFloat16 and so on. Throw CheckpointError for a type without a partner.
at::ScalarType scalar_type(const std::string& dtype);
std::string dtype_name(at::ScalarType type);

}  // namespace mgm
