// A warning that is given once in a process, however often what it is about comes up.
#pragma once

#include <string>

namespace mgm::log {

// Nothing if the same text has been given this way before.
void warn_once(const std::string& message);

}  // namespace mgm::log
