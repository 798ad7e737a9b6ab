// How libjpeg's errors come back to C++: error_exit jumps to guard(), which returns false. The code
// run under guard() must own nothing with a destructor, since a jump skips it.
#pragma once

#include <csetjmp>
#include <cstdio>

#include <jpeglib.h>  // needs cstdio

#include <jerror.h>  // its codes depend on jpeglib.h

namespace mgm {

struct JpegErrors {
  jpeg_error_mgr manager;  // first: libjpeg hands back a pointer to it
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];

  JpegErrors() : message() {
    jpeg_std_error(&manager);
    manager.error_exit = [](j_common_ptr info) {
      auto* self = reinterpret_cast<JpegErrors*>(info->err);
      self->manager.format_message(info, self->message);
      std::longjmp(self->jump, 1);
    };
    manager.emit_message = [](j_common_ptr info, int level) {
      // Warnings of damaged pixel data are errors; the others (bytes between markers, odd versions)
      // leave every pixel intact.
      if (level < 0 && is_damage(info->err->msg_code)) info->err->error_exit(info);
    };
    manager.output_message = [](j_common_ptr) {};
  }

  static bool is_damage(int code) {
    return code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE || code == JWRN_ARITH_BAD_CODE ||
           code == JWRN_MUST_RESYNC || code == JWRN_JPEG_EOF;
  }

  template <class Body>
  bool guard(const Body& body) {
    if (setjmp(jump)) return false;
    body();
    return true;
  }
};

}  // namespace mgm
