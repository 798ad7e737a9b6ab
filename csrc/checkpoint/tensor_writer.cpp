#include "checkpoint/tensor_writer.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "checkpoint/tensor_source.h"
#include "formats/crc32.h"
#include "formats/dtype.h"
#include "formats/safetensors.h"
#include "formats/torch_file.h"

namespace mgm {
namespace {

at::Tensor fetch(const TensorSpec& spec, const TensorGetter& get) {
  const at::Tensor tensor = get(spec.name);
  MGM_CHECK(tensor.defined(), "tensor '", spec.name, "'");
  MGM_CHECK(tensor.scalar_type() == spec.type && tensor.sizes() == at::IntArrayRef(spec.shape),
            "tensor '", spec.name, "': announced ", spec.type, " ", at::IntArrayRef(spec.shape),
            ", got ", tensor.scalar_type(), " ", tensor.sizes());
  return tensor.detach().to(at::kCPU).contiguous();
}

std::string_view bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

// Runs `write` on a temporary file that becomes `path`.
template <class Write>
WrittenFile write_whole(const fs::path& path, const Write& write) {
  const fs::path temporary = path.string() + ".tmp";
  WrittenFile written;
  try {
    FileWriter file(temporary);
    write(file);
    file.finish();
    written = {file.size(), file.hash()};
    std::error_code code;
    fs::rename(temporary, path, code);
    if (code) throw InternalError(path.string(), ": cannot rename a file to it: ", code.message());
  } catch (...) {
    std::error_code ignored;  // the error that counts is on its way
    fs::remove(temporary, ignored);
    throw;
  }
  fsync_dir(path.has_parent_path() ? path.parent_path() : fs::path("."));
  return written;
}

std::map<std::string, const TensorSpec*> by_name(const std::vector<TensorSpec>& tensors) {
  std::map<std::string, const TensorSpec*> out;
  for (const TensorSpec& spec : tensors) {
    MGM_CHECK(out.emplace(spec.name, &spec).second, "tensor '", spec.name, "' is written twice");
  }
  return out;
}

}  // namespace

uint64_t TensorSpec::bytes() const {
  const auto out = shape_bytes(shape, dtype_bytes(dtype_name(type)));
  MGM_CHECK(out, "shape of '", name, "'");
  return *out;
}

WrittenFile write_safetensors(const fs::path& path, const std::vector<TensorSpec>& tensors,
                              const TensorGetter& get,
                              const std::map<std::string, std::string>& metadata) {
  const auto specs = by_name(tensors);
  std::vector<TensorEntry> entries;
  for (const TensorSpec& spec : tensors) {
    entries.push_back({spec.name, dtype_name(spec.type), spec.shape, 0, 0});
  }
  return write_whole(path, [&](FileWriter& file) {
    file.write(make_safetensors_header(entries, metadata));
    for (const TensorEntry& entry : entries) {
      const at::Tensor tensor = fetch(*specs.at(entry.name), get);
      file.write(bytes_of(tensor));
    }
  });
}

WrittenFile write_safetensors(const fs::path& path,
                              const std::map<std::string, at::Tensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  }
  return write_safetensors(path, specs, [&](const std::string& name) { return tensors.at(name); });
}

WrittenFile write_torch_file(const fs::path& path, const std::vector<TensorSpec>& tensors,
                             const TensorGetter& get) {
  by_name(tensors);
  std::vector<TorchFileEntry> entries;
  for (const TensorSpec& spec : tensors) {
    entries.push_back({spec.name, dtype_name(spec.type), spec.shape});
  }
  TorchFileLayout layout(std::move(entries));
  return write_whole(path, [&](FileWriter& file) {
    file.write(layout.begin());
    for (size_t i = 0; i < tensors.size(); ++i) {
      const at::Tensor tensor = fetch(tensors[i], get);
      const std::string_view bytes = bytes_of(tensor);
      file.write(layout.before(i, bytes.size(), crc32(bytes)));
      file.write(bytes);
    }
    file.write(layout.end());
  });
}

}  // namespace mgm
