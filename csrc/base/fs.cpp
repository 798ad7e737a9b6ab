#include "base/fs.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/file_access.h"

namespace mgm {
namespace {

std::string reason() { return std::strerror(errno); }

std::string advice() {
  return errno == ENOSPC || errno == EDQUOT ? "; free some space or choose another folder" : "";
}

}  // namespace

std::string read_file(const fs::path& path) {
  const int fd = open_regular(path);
  struct stat info {};
  std::string content;
  if (::fstat(fd, &info) == 0) content.resize(static_cast<size_t>(info.st_size));
  size_t done = 0;
  while (true) {
    if (done == content.size()) content.resize(done + 65536);  // files of /proc have no size
    const ssize_t got = ::read(fd, content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const std::string why = reason();
      ::close(fd);
      throw DataError(path.string(), ": cannot read: ", why);
    }
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  ::close(fd);
  content.resize(done);
  return content;
}

void write_file_atomic(const fs::path& path, std::string_view content) {
  const fs::path temporary = path.string() + ".tmp";
  {
    FileWriter writer(temporary);
    writer.write(content);
    writer.finish();
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    throw InternalError(path.string(), ": cannot rename ", temporary.string(),
                        " to it: ", reason());
  }
  fsync_dir(path.parent_path().empty() ? fs::path(".") : path.parent_path());
}

void fsync_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ::fsync(fd) != 0) {
    const std::string why = reason();
    if (fd >= 0) ::close(fd);
    throw InternalError(path.string(), ": fsync failed: ", why);
  }
  ::close(fd);
}

void fsync_dir(const fs::path& path) { fsync_file(path); }

void make_dirs(const fs::path& path) {
  std::error_code code;
  fs::create_directories(path, code);
  if (code) throw InternalError(path.string(), ": cannot create the folder: ", code.message());
}

struct FileWriter::HashState {
  XXH3_state_t* state = XXH3_createState();
  HashState() { XXH3_64bits_reset(state); }
  ~HashState() { XXH3_freeState(state); }
};

FileWriter::FileWriter(const fs::path& path) : path_(path), hash_(std::make_unique<HashState>()) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0)
    throw InternalError(path.string(), ": cannot open for writing: ", reason(), advice());
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void FileWriter::write(const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  size_t done = 0;
  while (done < size) {
    const ssize_t put = ::write(fd_, bytes + done, size - done);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) {
      throw InternalError(path_.string(), ": cannot write ", size, " bytes at ", size_, ": ",
                          reason(), advice());
    }
    done += static_cast<size_t>(put);
  }
  if (size > 0) XXH3_64bits_update(hash_->state, data, size);
  size_ += size;
}

void FileWriter::finish() {
  if (::fsync(fd_) != 0)
    throw InternalError(path_.string(), ": fsync failed: ", reason(), advice());
  const int fd = fd_;
  fd_ = -1;
  if (::close(fd) != 0) throw InternalError(path_.string(), ": close failed: ", reason(), advice());
}

uint64_t FileWriter::hash() const { return XXH3_64bits_digest(hash_->state); }

MappedFile::MappedFile(const fs::path& path) {
  const int fd = open_regular(path);
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    const std::string why = reason();
    ::close(fd);
    throw DataError(path.string(), ": cannot ask for its size: ", why);
  }
  size_ = static_cast<size_t>(info.st_size);
  if (size_ > 0) {
    void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      const std::string why = reason();
      ::close(fd);
      throw DataError(path.string(), ": cannot map ", size_, " bytes: ", why);
    }
    data_ = static_cast<const uint8_t*>(mapped);
  }
  ::close(fd);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<uint8_t*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept : data_(other.data_), size_(other.size_) {
  other.data_ = nullptr;
  other.size_ = 0;
}

FileLock::FileLock(const fs::path& path, const std::string& what) {
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) throw InternalError(path.string(), ": cannot open for writing: ", reason());
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const std::string why = errno == EWOULDBLOCK ? "another process is using it" : reason();
    ::close(fd_);
    fd_ = -1;
    throw InternalError(what, " is locked (", path.string(), "): ", why,
                        ". Wait for that process to end, or choose another folder.");
  }
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace mgm
