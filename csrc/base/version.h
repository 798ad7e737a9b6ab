// What this binary was built from.
#pragma once

namespace mgm {

const char* version();  // of the project, "0.1.0"

// Full hash of the commit, "-dirty" behind it if the tree had changes; "unknown" outside git.
const char* git_commit();

}  // namespace mgm
