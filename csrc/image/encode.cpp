#include "image/encode.h"

#include <png.h>

#include <cstdlib>
#include <memory>

#include "base/error.h"
#include "image/jpeg_errors.h"

namespace mgm {
namespace {

void check_image(const RgbImage& image) {
  MGM_CHECK(image.width > 0 && image.height > 0 &&
                image.hwc.size() == static_cast<size_t>(image.width * image.height * 3),
            "image of ", image.width, " x ", image.height, " with ", image.hwc.size(), " bytes");
}

struct Free {
  void operator()(unsigned char* memory) const { std::free(memory); }
};

}  // namespace

std::string encode_png(const RgbImage& image) {
  check_image(image);
  png_image header = {};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(image.width);
  header.height = static_cast<png_uint_32>(image.height);
  header.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(header);
  std::string bytes(size, '\0');
  if (!png_image_write_to_memory(&header, bytes.data(), &size, 0, image.hwc.data(), 0, nullptr)) {
    throw InternalError("writing a PNG of ", image.width, " x ", image.height, ": ",
                        header.message);
  }
  bytes.resize(size);
  return bytes;
}

std::string encode_jpeg(const RgbImage& image, int quality) {
  check_image(image);
  MGM_CHECK(quality >= 1 && quality <= 100, "JPEG quality ", quality);
  JpegErrors errors;
  jpeg_compress_struct info = {};
  info.err = &errors.manager;
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  const bool ok = errors.guard([&] {
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, &memory, &size);
    info.image_width = static_cast<JDIMENSION>(image.width);
    info.image_height = static_cast<JDIMENSION>(image.height);
    info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, quality, TRUE);
    jpeg_start_compress(&info, TRUE);
    while (info.next_scanline < info.image_height) {
      JSAMPROW rows[1] = {const_cast<JSAMPROW>(image.row(info.next_scanline))};
      jpeg_write_scanlines(&info, rows, 1);
    }
    jpeg_finish_compress(&info);
  });
  jpeg_destroy_compress(&info);
  const std::unique_ptr<unsigned char, Free> owner(memory);
  if (!ok) {
    throw InternalError("writing a JPEG of ", image.width, " x ", image.height, ": ",
                        errors.message);
  }
  return std::string(reinterpret_cast<const char*>(memory), size);
}

}  // namespace mgm
