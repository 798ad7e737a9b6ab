#pragma once

#include <memory>
#include <string_view>

#include "base/fs.h"

namespace mgm {

// A file of weights in any format, mapped. CheckpointError where it cannot be read or is the text
// that git-lfs leaves in its place.
std::shared_ptr<MappedFile> map_weight_file(const fs::path& file);

std::string_view bytes_of(const MappedFile& file);

}  // namespace mgm
