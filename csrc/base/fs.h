// Files that survive a crash: read whole, write atomically (temporary file, fsync, rename, fsync of
// the folder), map read-only, lock. Every failure names the path and what the system said.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace mgm {

namespace fs = std::filesystem;

// Throws Error(kData) if the file cannot be read.
std::string read_file(const fs::path& path);

// Replaces `path` in one step: a reader sees the old content or the new one, never a part.
// Throws Error(kInternal).
void write_file_atomic(const fs::path& path, std::string_view content);

void fsync_file(const fs::path& path);
void fsync_dir(const fs::path& path);
void make_dirs(const fs::path& path);  // throws Error(kInternal) naming the part that failed

// A sequential writer that throws on the first short write (disk full included) and fsyncs on
// close. Also hashes what it writes (xxh3-64).
class FileWriter {
 public:
  explicit FileWriter(const fs::path& path);
  ~FileWriter();  // closes without fsync; call finish() for a durable file
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(const void* data, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void finish();  // fsync and close; throws
  uint64_t size() const { return size_; }
  uint64_t hash() const;  // xxh3-64 of everything written so far

 private:
  struct HashState;
  fs::path path_;
  int fd_ = -1;
  uint64_t size_ = 0;
  std::unique_ptr<HashState> hash_;
};

// A file mapped read-only. Throws Error(kData) if it cannot be opened.
class MappedFile {
 public:
  explicit MappedFile(const fs::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// An exclusive lock on a file for as long as the object lives (flock: it goes with the process).
class FileLock {
 public:
  // Throws Error(kInternal) if another process holds it; `what` names the thing being protected.
  FileLock(const fs::path& path, const std::string& what);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace mgm
