#include "base/file_access.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace mgm {
namespace {

const char* kind_name(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

std::string normal_name(const fs::path& path) {
  std::error_code code;
  const fs::path whole = fs::weakly_canonical(path, code);
  return (code ? path.lexically_normal() : whole).string();
}

}  // namespace

int open_regular(const fs::path& path) {
  struct stat info {};
  // Asked for before it is opened: opening alone wakes some devices. O_NONBLOCK is for a pipe that
  // takes the file's place in between.
  if (::stat(path.c_str(), &info) != 0) {
    throw DataError(path.string(), ": cannot open: ", std::strerror(errno));
  }
  const auto refuse = [&] {
    throw DataError(path.string(), ": is ", kind_name(info.st_mode), ", expected a regular file");
  };
  if (!S_ISREG(info.st_mode)) refuse();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw DataError(path.string(), ": cannot open: ", std::strerror(errno));
  if (::fstat(fd, &info) == 0 && !S_ISREG(info.st_mode)) {
    ::close(fd);
    refuse();
  }
  return fd;
}

std::string read_beginning(const fs::path& path, size_t bytes) {
  const int fd = open_regular(path);
  std::string out(bytes, '\0');
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::read(fd, out.data() + done, bytes - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  ::close(fd);
  out.resize(done);
  return out;
}

void refuse_replacing(const std::string& option, const fs::path& out, const fs::path& input,
                      const std::string& what) {
  std::error_code code;
  const fs::path whole = fs::canonical(input, code);
  if (code || !fs::exists(out, code)) return;
  for (fs::path at = whole;; at = at.parent_path()) {
    if (fs::equivalent(at, out, code)) {
      throw ConfigError(option, " ", out.string(), ": is ", at == whole ? "" : "the folder of ",
                        what, at == whole ? " itself" : ", which would be replaced with it",
                        "; choose another folder");
    }
    if (at == at.parent_path()) return;
  }
}

bool FileUse::identify(const fs::path& path, Identity& out) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return false;
  out = {static_cast<uint64_t>(info.st_dev), static_cast<uint64_t>(info.st_ino)};
  return true;
}

void FileUse::reads(const fs::path& path) {
  std::error_code code;
  if (fs::is_directory(path, code)) {
    for (const auto& entry : fs::directory_iterator(path, code)) {
      if (!entry.is_directory(code)) reads(entry.path());
    }
    return;
  }
  Identity file;
  if (identify(path, file)) files_.emplace(file, cat("the input ", path.string()));
}

void FileUse::refuse_used(const std::string& option, const fs::path& path,
                          const fs::path& touched) const {
  Identity file;
  std::string other;
  if (identify(touched, file)) {
    if (const auto it = files_.find(file); it != files_.end()) other = it->second;
  }
  if (const auto it = new_files_.find(normal_name(touched)); it != new_files_.end()) {
    other = it->second;
  }
  if (other.empty()) return;
  throw ConfigError(
      option, " ", path.string(), ": ",
      touched == path ? "" : cat("it is first written to ", touched.string(), ", and that "),
      "is the same file as ", other, "; choose another name");
}

void FileUse::writes(const std::string& option, const fs::path& path) {
  refuse_used(option, path, path);
  refuse_used(option, path, path.string() + ".tmp");
  std::error_code code;
  if (fs::is_directory(path, code)) {
    throw ConfigError(option, " ", path.string(), ": is a folder, expected the name of a file");
  }
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (::access(folder.c_str(), W_OK | X_OK) != 0 ||
      (fs::exists(path, code) && ::access(path.c_str(), W_OK) != 0)) {
    throw InternalError(option, " ", path.string(), ": cannot be written: ", std::strerror(errno));
  }
  Identity file;
  if (identify(path, file)) files_.emplace(file, cat("that of ", option));
  new_files_.emplace(normal_name(path), cat("that of ", option));
}

}  // namespace mgm
