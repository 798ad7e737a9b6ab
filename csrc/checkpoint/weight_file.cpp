#include "checkpoint/weight_file.h"

#include "base/error.h"

namespace mgm {

std::string_view bytes_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

std::shared_ptr<MappedFile> map_weight_file(const fs::path& file) {
  std::shared_ptr<MappedFile> mapped;
  try {
    mapped = std::make_shared<MappedFile>(file);
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
  if (bytes_of(*mapped).starts_with("version https://git-lfs")) {
    throw CheckpointError(
        file.string(),
        ": is a git-lfs pointer, not the weights: `git lfs pull` in its folder, or "
        "a download of the file itself, brings them");
  }
  return mapped;
}

}  // namespace mgm
