// Zip archives as torch.save writes them: every entry stored, tensor data 64-byte aligned. The
// reader takes stored entries (zip64 too), refuses the rest by name and never reads outside the
// given bytes. Checksums are written but not compared: torch can be told to store other values, and
// a mapped file is not read whole anyway. Source: PKWARE APPNOTE 6.3.10, caffe2/serialize.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mgm {

struct ZipEntry {
  std::string name;
  uint64_t begin = 0;  // byte range of the content
  uint64_t end = 0;
};

// Entries in the order of the directory. Throws CheckpointError naming `source` and the entry: not
// a zip archive (what torch.save wrote before 1.6), cut, compressed, encrypted, a name twice.
std::vector<ZipEntry> parse_zip(std::string_view file, const std::string& source);

// The bytes of an archive around its contents. The caller writes header, content, header, content,
// ..., end.
class ZipLayout {
 public:
  // What goes before an entry's content of `size` bytes whose crc32 (formats/crc32.h) is `crc`.
  std::string header(const std::string& name, uint64_t size, uint32_t crc);
  // The directory.
  std::string end() const;

 private:
  struct Record {
    std::string name;
    uint64_t offset, size;
    uint32_t crc;
  };
  std::vector<Record> records_;
  uint64_t at_ = 0;
};

}  // namespace mgm
