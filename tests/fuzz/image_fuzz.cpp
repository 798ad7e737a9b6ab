// Any bytes as a picture: a DataError, or an image of the size its header tells, from which both
// canvases can be made.
//
// sources: csrc/image/*.cpp
//
// flags: -ljpeg -lpng -lwebp -lwebpdemux
#include <cstdlib>

#include "base/error.h"
#include "image/canvas.h"
#include "image/decode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const mgm::ImageInfo info = mgm::probe(bytes, "input");
    // Large pictures are legal; decoding them would only make the fuzzer slow.
    if (info.width * info.height > 200000 || info.width > 20000 || info.height > 20000) return 0;
    const mgm::RgbImage image = mgm::decode_rgb(bytes, "input");
    if (image.width != info.width || image.height != info.height) std::abort();
    const int64_t side = 1 + static_cast<int64_t>(size % 41);
    for (const mgm::ImageAspect aspect : {mgm::ImageAspect::kPad, mgm::ImageAspect::kSquare}) {
      if (mgm::make_canvas(image, aspect, side, {122, 116, 104}).width != side) std::abort();
    }
  } catch (const mgm::DataError&) {
  }
  return 0;
}
