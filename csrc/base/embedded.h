// Files compiled into the binary: configs/base/*.yaml and configs/templates/*.yaml. A file on disk
// or a key in a config overrides them; they are what makes the binary complete on a bare host.
#pragma once

#include <string_view>
#include <vector>

namespace mgm {

struct EmbeddedFile {
  std::string_view name;  // path relative to configs/, e.g. "base/vicuna_7b.yaml"
  std::string_view text;
};

// All embedded files, in a fixed order.
const std::vector<EmbeddedFile>& embedded_files();

}  // namespace mgm
