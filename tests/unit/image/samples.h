// Pictures made on the spot for the image tests: noise, and files of every format and kind.
#pragma once

#include <png.h>
#include <webp/encode.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/rng.h"
#include "image/jpeg_errors.h"
#include "image/rgb_image.h"

namespace mgm::samples {

inline std::vector<uint8_t> noise_bytes(size_t count, uint64_t seed) {
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(philox(seed, 0, i)[0] >> 24);
  return bytes;
}

inline RgbImage noise(int64_t width, int64_t height, uint64_t seed = 1) {
  RgbImage image(width, height);
  image.hwc = noise_bytes(image.hwc.size(), seed);
  return image;
}

struct PngOptions {
  int colour = PNG_COLOR_TYPE_RGB;
  int bits = 8;
  bool interlaced = false;
  std::vector<png_color> palette = {};
  std::string transparency = {};  // the content of tRNS, as palette alphas
  std::string text = {};          // a compressed text chunk
};

// `rows` are the packed rows as PNG stores them, row after row.
inline std::string write_png(int width, int height, const std::vector<uint8_t>& rows,
                             const PngOptions& options) {
  std::string bytes;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &bytes,
      [](png_structp p, png_bytep data, size_t size) {
        static_cast<std::string*>(png_get_io_ptr(p))
            ->append(reinterpret_cast<const char*>(data), size);
      },
      nullptr);
  png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height),
               options.bits, options.colour,
               options.interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (!options.palette.empty()) {
    png_set_PLTE(png, info, options.palette.data(), static_cast<int>(options.palette.size()));
  }
  if (!options.transparency.empty()) {
    png_set_tRNS(png, info, reinterpret_cast<png_const_bytep>(options.transparency.data()),
                 static_cast<int>(options.transparency.size()), nullptr);
  }
  std::string key = "Comment", text = options.text;
  if (!text.empty()) {
    png_text chunk = {};
    chunk.compression = PNG_TEXT_COMPRESSION_zTXt;
    chunk.key = key.data();
    chunk.text = text.data();
    chunk.text_length = text.size();
    png_set_text(png, info, &chunk, 1);
  }
  png_write_info(png, info);
  const size_t stride = png_get_rowbytes(png, info);
  std::vector<png_bytep> pointers;
  for (size_t y = 0; y < static_cast<size_t>(height); ++y) {
    pointers.push_back(const_cast<png_bytep>(rows.data() + y * stride));
  }
  png_write_image(png, pointers.data());
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return bytes;
}

struct JpegOptions {
  int channels = 3;  // 1, 3 or 4 (CMYK)
  bool progressive = false;
  bool adobe = false;  // YCCK instead of CMYK
  int restart = 0;     // MCUs between restart markers
};

inline std::string write_jpeg(int width, int height, const std::vector<uint8_t>& rows,
                              const JpegOptions& options) {
  JpegErrors errors;
  jpeg_compress_struct info = {};
  info.err = &errors.manager;
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  errors.guard([&] {
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, &memory, &size);
    info.image_width = static_cast<JDIMENSION>(width);
    info.image_height = static_cast<JDIMENSION>(height);
    info.input_components = options.channels;
    info.in_color_space = options.channels == 1   ? JCS_GRAYSCALE
                          : options.channels == 3 ? JCS_RGB
                                                  : JCS_CMYK;
    jpeg_set_defaults(&info);
    if (options.adobe) jpeg_set_colorspace(&info, JCS_YCCK);
    jpeg_set_quality(&info, 90, TRUE);
    info.restart_interval = static_cast<unsigned>(options.restart);
    if (options.progressive) jpeg_simple_progression(&info);
    jpeg_start_compress(&info, TRUE);
    while (info.next_scanline < info.image_height) {
      const size_t at = size_t{info.next_scanline} * static_cast<size_t>(width * options.channels);
      JSAMPROW row[1] = {const_cast<JSAMPROW>(rows.data() + at)};
      jpeg_write_scanlines(&info, row, 1);
    }
    jpeg_finish_compress(&info);
  });
  jpeg_destroy_compress(&info);
  std::string bytes(reinterpret_cast<const char*>(memory), size);
  std::free(memory);
  return bytes;
}

inline std::string write_webp_lossless(const RgbImage& image) {
  uint8_t* memory = nullptr;
  const size_t size = WebPEncodeLosslessRGB(image.hwc.data(), static_cast<int>(image.width),
                                            static_cast<int>(image.height),
                                            static_cast<int>(image.width * 3), &memory);
  std::string bytes(reinterpret_cast<const char*>(memory), size);
  WebPFree(memory);
  return bytes;
}

inline std::string write_webp_lossy(const RgbImage& image) {
  uint8_t* memory = nullptr;
  const size_t size =
      WebPEncodeRGB(image.hwc.data(), static_cast<int>(image.width), static_cast<int>(image.height),
                    static_cast<int>(image.width * 3), 80, &memory);
  std::string bytes(reinterpret_cast<const char*>(memory), size);
  WebPFree(memory);
  return bytes;
}

inline std::string u16(int value) {
  return {static_cast<char>(value & 0xff), static_cast<char>(value >> 8)};
}

struct GifOptions {
  int canvas_width = 0, canvas_height = 0;  // 0: the frame's
  int left = 0, top = 0;
  bool interlaced = false;
  int transparent = -1;
  std::string palette = {};        // RGB bytes of the global palette, 2^n colours
  std::string local_palette = {};  // of the frame
};

// Number of colours as the three flag bits.
inline int palette_bits(const std::string& palette) {
  int bits = 0;
  while ((size_t{6} << bits) < palette.size()) ++bits;
  return bits;
}

// Indices below 128 as 8-bit LZW codes with a clear code before the table would grow.
inline std::string write_gif(int width, int height, const std::vector<uint8_t>& indices,
                             const GifOptions& o) {
  std::string bytes = "GIF89a";
  bytes += u16(o.canvas_width ? o.canvas_width : width);
  bytes += u16(o.canvas_height ? o.canvas_height : height);
  bytes += static_cast<char>(o.palette.empty() ? 0 : 0x80 | palette_bits(o.palette));
  bytes += std::string(2, '\0') + o.palette;
  if (o.transparent >= 0) {
    bytes += std::string("!\xf9\x04\x01\0\0", 6) + static_cast<char>(o.transparent) + '\0';
  }
  bytes += "," + u16(o.left) + u16(o.top) + u16(width) + u16(height);
  bytes += static_cast<char>((o.interlaced ? 0x40 : 0) |
                             (o.local_palette.empty() ? 0 : 0x80 | palette_bits(o.local_palette)));
  bytes += o.local_palette;
  bytes += '\x07';
  std::string codes;
  for (size_t i = 0; i < indices.size(); ++i) {
    if (i % 100 == 0) codes += '\x80';
    codes += static_cast<char>(indices[i]);
  }
  codes += '\x81';
  for (size_t i = 0; i < codes.size(); i += 255) {
    const std::string block = codes.substr(i, 255);
    bytes += static_cast<char>(block.size()) + block;
  }
  return bytes + '\0' + ';';
}

}  // namespace mgm::samples
