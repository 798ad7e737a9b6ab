# Writes OUT with the commit of SOURCE; leaves the file alone when nothing changed, so that nothing is
# rebuilt then.
execute_process(COMMAND git -C ${SOURCE} describe --always --abbrev=40 --dirty --match=none
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed OR commit STREQUAL "")
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT [[
#include "base/version.h"

namespace mgm {
const char* version() { return "@VERSION@"; }
const char* git_commit() { return "@commit@"; }
}  // namespace mgm
]] @ONLY)
