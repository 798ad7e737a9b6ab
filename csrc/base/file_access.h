// Which files may be read and written: regular ones, and no output over an input.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/fs.h"

namespace mgm {

// A descriptor for reading. Throws DataError where there is no regular file behind the path (links
// are followed): pipes, sockets and devices would block, or never end.
int open_regular(const fs::path& path);

// The first bytes of a regular file, fewer if it is shorter. Throws as open_regular().
std::string read_beginning(const fs::path& path, size_t bytes);

// Throws ConfigError naming `option` if writing the folder `out` anew would take the place of
// `input`, a file or folder that `what` names: they are the same, or `input` lies below `out`.
void refuse_replacing(const std::string& option, const fs::path& out, const fs::path& input,
                      const std::string& what);

// The files that a command reads and writes. One that is both would be destroyed.
class FileUse {
 public:
  // A folder stands for the files in it; what is not there is left out.
  void reads(const fs::path& path);
  // Throws ConfigError naming `option` if the file, or the temporary one it is first written to, is
  // one that is read or another output, under whatever name; also if it is a folder. Throws
  // InternalError if it cannot be written there. Creates nothing.
  void writes(const std::string& option, const fs::path& path);

 private:
  struct Identity {
    uint64_t device, inode;
    auto operator<=>(const Identity&) const = default;
  };
  static bool identify(const fs::path& path, Identity& out);
  void refuse_used(const std::string& option, const fs::path& path, const fs::path& touched) const;

  std::map<Identity, std::string> files_;         // and what each is
  std::map<std::string, std::string> new_files_;  // outputs that are not there yet
};

}  // namespace mgm
