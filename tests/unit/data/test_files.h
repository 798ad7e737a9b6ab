// A folder that lives as long as the test, and files in it.
#pragma once

#include <unistd.h>

#include <fstream>
#include <string>
#include <string_view>

#include "base/fs.h"
#include "base/strings.h"

namespace mgm {

class TempDir {
 public:
  TempDir() {
    std::string name = (fs::temp_directory_path() / "mgm_data_XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempDir() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string path(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, std::string_view content) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }

 private:
  fs::path path_;
};

// The message of the E that `body` throws, "" if it throws none.
template <class E, class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}

}  // namespace mgm
