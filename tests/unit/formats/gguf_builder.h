// Writes GGUF files, right ones and wrong ones: every number is what the test says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mgm {

class GgufBuilder {
 public:
  template <class T>
  static std::string raw(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof(T)};
  }
  static std::string text(const std::string& value) { return raw<uint64_t>(value.size()) + value; }

  // `kind`: GgufKind; `bytes`: the value as the file has it.
  GgufBuilder& meta(const std::string& key, uint32_t kind, const std::string& bytes) {
    metadata_ += text(key) + raw(kind) + bytes;
    ++values_;
    return *this;
  }
  GgufBuilder& meta(const std::string& key, const std::string& value) {
    return meta(key, 8, text(value));
  }
  GgufBuilder& meta(const std::string& key, uint32_t value) { return meta(key, 4, raw(value)); }
  GgufBuilder& meta(const std::string& key, float value) { return meta(key, 6, raw(value)); }

  // `dims`: innermost first, as in the file. The data follows the last one's, padded to 32.
  GgufBuilder& tensor(const std::string& name, const std::vector<int64_t>& dims, uint32_t type,
                      const std::string& data) {
    entry(name, dims, type, data_.size());
    data_ += data;
    data_.append((32 - data_.size() % 32) % 32, '\0');
    return *this;
  }
  // A row of the table alone.
  GgufBuilder& entry(const std::string& name, const std::vector<int64_t>& dims, uint32_t type,
                     uint64_t offset) {
    table_ += text(name) + raw(static_cast<uint32_t>(dims.size()));
    for (const int64_t dim : dims) table_ += raw(dim);
    table_ += raw(type) + raw(offset);
    ++tensors_;
    return *this;
  }
  GgufBuilder& data(const std::string& bytes) {
    data_ += bytes;
    return *this;
  }

  std::string magic = "GGUF";
  uint32_t version = 3;

  std::string build() const {
    std::string out = magic + raw(version) + raw(tensors_) + raw(values_) + metadata_ + table_;
    out.append((32 - out.size() % 32) % 32, '\0');
    return out + data_;
  }

 private:
  std::string metadata_, table_, data_;
  uint64_t tensors_ = 0, values_ = 0;
};

}  // namespace mgm
