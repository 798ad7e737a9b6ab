// One reader per format, behind decode.h.
#pragma once

#include <string>
#include <string_view>

#include "image/decode.h"

namespace mgm {

// Refuses a picture of no pixels or of too many; `what` is the format's name.
void check_size(int64_t width, int64_t height, const char* what, const std::string& source);

ImageInfo probe_jpeg(std::string_view bytes, const std::string& source);
ImageInfo probe_png(std::string_view bytes, const std::string& source);
ImageInfo probe_webp(std::string_view bytes, const std::string& source);
ImageInfo probe_gif(std::string_view bytes, const std::string& source);

RgbImage decode_jpeg(std::string_view bytes, const std::string& source);
RgbImage decode_png(std::string_view bytes, const std::string& source);
RgbImage decode_webp(std::string_view bytes, const std::string& source);
RgbImage decode_gif(std::string_view bytes, const std::string& source);

}  // namespace mgm
