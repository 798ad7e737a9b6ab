#include "formats/zip.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/error.h"

namespace mgm {
namespace {

constexpr uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50;
constexpr uint32_t kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
constexpr uint64_t kMax32 = 0xffffffff;
constexpr uint64_t kAlign = 64;

// Little-endian fields of a byte range, every access checked.
class Bytes {
 public:
  Bytes(std::string_view data, const std::string& source) : data_(data), source_(source) {}
  template <class T>
  T get(uint64_t at) const {
    T value{};
    std::memcpy(&value, range(at, sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view range(uint64_t at, uint64_t size) const {
    if (at > data_.size() || data_.size() - at < size) {
      throw CheckpointError(source_, ": zip archive is cut at byte ", data_.size());
    }
    return data_.substr(at, size);
  }
  uint64_t size() const { return data_.size(); }

 private:
  std::string_view data_;
  const std::string& source_;
};

struct Directory {
  uint64_t offset, count;
};

Directory find_directory(const Bytes& bytes, const std::string& source) {
  constexpr uint64_t kEndSize = 22, kMaxComment = 65535;
  const uint64_t size = bytes.size();
  if (size >= kEndSize) {
    for (uint64_t back = kEndSize; back <= std::min(size, kEndSize + kMaxComment); ++back) {
      const uint64_t at = size - back;
      if (bytes.get<uint32_t>(at) != kEnd) continue;
      Directory d{bytes.get<uint32_t>(at + 16), bytes.get<uint16_t>(at + 10)};
      if (at >= 20 && bytes.get<uint32_t>(at - 20) == kLocator64) {
        const auto end64 = bytes.get<uint64_t>(at - 20 + 8);
        if (bytes.get<uint32_t>(end64) != kEnd64) {
          throw CheckpointError(source, ": damaged zip64 end record");
        }
        d = {bytes.get<uint64_t>(end64 + 48), bytes.get<uint64_t>(end64 + 32)};
      }
      return d;
    }
  }
  if (size > 0 && bytes.get<uint8_t>(0) == 0x80) {  // a bare pickle
    throw CheckpointError(
        source,
        ": a legacy torch file (before torch 1.6), which is not read. Convert it once:\n"
        "  python -c \"import torch, safetensors.torch as s; s.save_file({k: "
        "v.clone().contiguous() "
        "for k, v in torch.load('",
        source, "', weights_only=True).items()}, 'model.safetensors')\"");
  }
  throw CheckpointError(source, ": not a zip archive as torch.save writes it, or cut");
}

// A zip64 field: the values that are all ones in the fixed part, in this order.
void read_zip64(const Bytes& bytes, uint64_t field, uint64_t field_end, const std::string& source,
                std::initializer_list<uint64_t*> values) {
  for (uint64_t* value : values) {
    if (*value != kMax32) continue;
    if (field_end - field < 8) throw CheckpointError(source, ": damaged zip64 entry");
    *value = bytes.get<uint64_t>(field);
    field += 8;
  }
}

// The directory record at `at`, which moves behind it.
ZipEntry parse_entry(const Bytes& bytes, const std::string& source, uint64_t& at) {
  if (bytes.get<uint32_t>(at) != kCentral) {
    throw CheckpointError(source, ": damaged zip directory at byte ", at);
  }
  const auto flags = bytes.get<uint16_t>(at + 8), method = bytes.get<uint16_t>(at + 10);
  uint64_t packed = bytes.get<uint32_t>(at + 20), size = bytes.get<uint32_t>(at + 24);
  const uint64_t name_size = bytes.get<uint16_t>(at + 28);
  const uint64_t extra_size = bytes.get<uint16_t>(at + 30);
  const uint64_t comment_size = bytes.get<uint16_t>(at + 32);
  uint64_t local = bytes.get<uint32_t>(at + 42);
  const std::string name(bytes.range(at + 46, name_size));
  const uint64_t extra_end = at + 46 + name_size + extra_size;
  for (uint64_t e = at + 46 + name_size; e + 4 <= extra_end;) {
    const auto id = bytes.get<uint16_t>(e);
    const uint64_t next = e + 4 + bytes.get<uint16_t>(e + 2);
    if (next > extra_end) throw CheckpointError(source, ": damaged zip entry '", name, "'");
    if (id == 1) read_zip64(bytes, e + 4, next, source, {&size, &packed, &local});
    e = next;
  }
  at = extra_end + comment_size;
  if (flags & 1) throw CheckpointError(source, ": zip entry '", name, "' is encrypted");
  if (method != 0 || packed != size) {
    throw CheckpointError(source, ": zip entry '", name, "' is compressed (method ", method,
                          "); torch files store their entries. Unpack and save it with torch.save");
  }
  if (bytes.get<uint32_t>(local) != kLocal) {
    throw CheckpointError(source, ": damaged zip entry '", name, "'");
  }
  const uint64_t begin =
      local + 30 + uint64_t{bytes.get<uint16_t>(local + 26)} + bytes.get<uint16_t>(local + 28);
  bytes.range(begin, size);
  return {name, begin, begin + size};
}

}  // namespace

std::vector<ZipEntry> parse_zip(std::string_view file, const std::string& source) {
  const Bytes bytes(file, source);
  const Directory directory = find_directory(bytes, source);
  std::vector<ZipEntry> entries;
  std::set<std::string> names;
  uint64_t at = directory.offset;
  for (uint64_t i = 0; i < directory.count; ++i) {
    entries.push_back(parse_entry(bytes, source, at));
    const std::string& name = entries.back().name;
    if (!names.insert(name).second) {
      throw CheckpointError(source, ": zip entry '", name, "' occurs twice");
    }
  }
  return entries;
}

namespace {

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

}  // namespace

std::string ZipLayout::header(const std::string& name, uint64_t size, uint32_t crc) {
  const uint64_t offset = at_;
  const bool big = size >= kMax32;
  // An extra field pads the content to 64 bytes, as torch's writer does, so that it can be mapped.
  const uint64_t fixed = 30 + name.size() + (big ? 20 : 0) + 4;
  const uint64_t padding = (kAlign - (offset + fixed) % kAlign) % kAlign;
  std::string out;
  put<uint32_t>(out, kLocal);
  put<uint16_t>(out, big ? 45 : 20);
  put<uint16_t>(out, 0);
  put<uint16_t>(out, 0);           // stored
  put<uint32_t>(out, 0x00210000);  // 1980-01-01, so that equal content gives equal files
  put<uint32_t>(out, crc);
  put<uint32_t>(out, static_cast<uint32_t>(big ? kMax32 : size));
  put<uint32_t>(out, static_cast<uint32_t>(big ? kMax32 : size));
  put<uint16_t>(out, static_cast<uint16_t>(name.size()));
  put<uint16_t>(out, static_cast<uint16_t>((big ? 20 : 0) + 4 + padding));
  out += name;
  if (big) {
    put<uint16_t>(out, 1);
    put<uint16_t>(out, 16);
    put<uint64_t>(out, size);
    put<uint64_t>(out, size);
  }
  put<uint16_t>(out, 0x4246);  // "FB", the padding field of torch
  put<uint16_t>(out, static_cast<uint16_t>(padding));
  out.append(padding, 'Z');
  records_.push_back({name, offset, size, crc});
  at_ = offset + out.size() + size;
  return out;
}

std::string ZipLayout::end() const {
  std::string out;
  for (const Record& r : records_) {
    const bool big = r.size >= kMax32 || r.offset >= kMax32;
    put<uint32_t>(out, kCentral);
    put<uint16_t>(out, 45);
    put<uint16_t>(out, big ? 45 : 20);
    put<uint16_t>(out, 0);
    put<uint16_t>(out, 0);
    put<uint32_t>(out, 0x00210000);
    put<uint32_t>(out, r.crc);
    put<uint32_t>(out, static_cast<uint32_t>(big ? kMax32 : r.size));
    put<uint32_t>(out, static_cast<uint32_t>(big ? kMax32 : r.size));
    put<uint16_t>(out, static_cast<uint16_t>(r.name.size()));
    put<uint16_t>(out, big ? 28 : 0);
    for (int i = 0; i < 3; ++i) put<uint16_t>(out, 0);
    put<uint32_t>(out, 0);
    put<uint32_t>(out, static_cast<uint32_t>(big ? kMax32 : r.offset));
    out += r.name;
    if (big) {
      put<uint16_t>(out, 1);
      put<uint16_t>(out, 24);
      put<uint64_t>(out, r.size);
      put<uint64_t>(out, r.size);
      put<uint64_t>(out, r.offset);
    }
  }
  const uint64_t directory_size = out.size(), count = records_.size();
  const bool big = at_ >= kMax32 || count >= 0xffff;
  if (big) {
    put<uint32_t>(out, kEnd64);
    put<uint64_t>(out, 44);
    put<uint16_t>(out, 45);
    put<uint16_t>(out, 45);
    put<uint32_t>(out, 0);
    put<uint32_t>(out, 0);
    put<uint64_t>(out, count);
    put<uint64_t>(out, count);
    put<uint64_t>(out, directory_size);
    put<uint64_t>(out, at_);
    put<uint32_t>(out, kLocator64);
    put<uint32_t>(out, 0);
    put<uint64_t>(out, at_ + directory_size);
    put<uint32_t>(out, 1);
  }
  put<uint32_t>(out, kEnd);
  put<uint16_t>(out, 0);
  put<uint16_t>(out, 0);
  put<uint16_t>(out, static_cast<uint16_t>(big ? 0xffff : count));
  put<uint16_t>(out, static_cast<uint16_t>(big ? 0xffff : count));
  put<uint32_t>(out, static_cast<uint32_t>(big ? kMax32 : directory_size));
  put<uint32_t>(out, static_cast<uint32_t>(big ? kMax32 : at_));
  put<uint16_t>(out, 0);
  return out;
}

}  // namespace mgm
