// PNG through libpng. Palette indices and 16-bit grey are mapped here, as Pillow maps them; for the
// rest libpng's own conversions to 8-bit RGB are Pillow's.
#include <png.h>

#include <cstring>

#include "base/error.h"
#include "image/codecs.h"

namespace mgm {
namespace {

// libpng over a byte string. The string must outlive it.
class PngReader {
 public:
  PngReader(std::string_view bytes, const std::string& source) : name_(source), rest_(bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, auto) {});
    if (png_) info_ = png_create_info_struct(png_);
    if (!info_) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw InternalError("libpng could not be set up: out of memory or a wrong library version");
    }
  }
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  // Everything up to the pixels.
  void read_header() {
    run([this] {
      png_set_read_fn(png_, this, on_read);
      png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // check_size has our limits
      // Transparency, profiles and texts are not wanted and, compressed, could fill the memory.
      constexpr png_byte kTransparency[] = "tRNS";
      png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
      png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, kTransparency, 1);
      png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
      png_read_info(png_, info_);
    });
    check_size(width(), height(), "PNG", name_);
  }

  // libpng unpacks what lies behind the last row too, a thousand times its size in zeros: more than
  // rows can need, stored as they are with the largest overhead in use, is a bomb.
  void check_packed_size(std::string_view bytes) const {
    constexpr int64_t kSlack = 1 << 16;
    const auto rows = height() * (static_cast<int64_t>(png_get_rowbytes(png_, info_)) + 16);
    const int64_t packed = packed_bytes(bytes), limit = rows + rows / 8 + kSlack;
    if (packed <= limit) return;
    throw DataError(name_, ": broken PNG: ", packed, " bytes of packed pixels, but ", width(),
                    " x ", height(), " pixels take at most ", limit);
  }

  int64_t width() const { return png_get_image_width(png_, info_); }
  int64_t height() const { return png_get_image_height(png_, info_); }
  int colour() const { return png_get_color_type(png_, info_); }
  int bits() const { return png_get_bit_depth(png_, info_); }
  bool is_grey16() const { return colour() == PNG_COLOR_TYPE_GRAY && bits() == 16; }

  // Reads all rows, `stride` bytes apart: palette indices (1 byte a pixel), 16-bit grey (2, big
  // endian), else RGB (3).
  void read_pixels(uint8_t* rows, int64_t stride) {
    run([this, rows, stride] {
      if (colour() == PNG_COLOR_TYPE_PALETTE) {
        png_set_packing(png_);
      } else if (!is_grey16()) {
        png_set_expand_gray_1_2_4_to_8(png_);
        png_set_strip_16(png_);
        png_set_strip_alpha(png_);
        png_set_gray_to_rgb(png_);
      }
      const int passes = png_set_interlace_handling(png_);
      png_read_update_info(png_, info_);
      for (int pass = 0; pass < passes; ++pass) {
        for (int64_t y = 0; y < height(); ++y) png_read_row(png_, rows + y * stride, nullptr);
      }
    });
  }

  // 256 colours; those that the file does not define are black.
  std::vector<Rgb> palette() const {
    png_colorp entries = nullptr;
    int count = 0;
    png_get_PLTE(png_, info_, &entries, &count);
    std::vector<Rgb> colours(256);
    for (int i = 0; i < count; ++i) {
      colours[static_cast<size_t>(i)] = {entries[i].red, entries[i].green, entries[i].blue};
    }
    return colours;
  }

 private:
  // Of all IDAT chunks: length, type, data and checksum each.
  static int64_t packed_bytes(std::string_view bytes) {
    constexpr size_t kSignature = 8, kAround = 12;
    int64_t total = 0;
    for (size_t at = kSignature; at + kAround <= bytes.size();) {
      const auto length = png_get_uint_32(reinterpret_cast<png_const_bytep>(bytes.data()) + at);
      if (bytes.substr(at + 4, 4) == "IDAT") total += length;
      at += kAround + length;
    }
    return total;
  }
  [[noreturn]] static void on_error(png_structp png, png_const_charp message) {
    auto* self = static_cast<PngReader*>(png_get_error_ptr(png));
    std::strncpy(self->message_, message, sizeof self->message_ - 1);
    png_longjmp(png, 1);
  }
  static void on_read(png_structp png, png_bytep out, size_t size) {
    auto* self = static_cast<PngReader*>(png_get_io_ptr(png));
    if (size > self->rest_.size()) {
      self->cut_ = true;
      png_error(png, "the file ends early");
    }
    std::memcpy(out, self->rest_.data(), size);
    self->rest_.remove_prefix(size);
  }

  // libpng jumps here on an error, so `body` must own nothing with a destructor.
  template <class Body>
  void run(const Body& body) {
    if (!setjmp(png_jmpbuf(png_))) {
      body();
      return;
    }
    if (cut_) throw DataError(name_, ": PNG is cut: the file ends before the picture does");
    throw DataError(name_, ": broken PNG: ", message_);
  }

  std::string name_;
  std::string_view rest_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  char message_[256] = {};
  bool cut_ = false;
};

const char* mode_of(const PngReader& reader) {
  const bool deep = reader.bits() == 16;
  switch (reader.colour()) {
    case PNG_COLOR_TYPE_GRAY:
      return reader.bits() == 1 ? "1" : deep ? "I;16" : "L";
    case PNG_COLOR_TYPE_PALETTE:
      return "P";
    case PNG_COLOR_TYPE_RGB:
      return "RGB";
    case PNG_COLOR_TYPE_GRAY_ALPHA:
      return deep ? "RGBA" : "LA";  // Pillow has no mode for 16-bit grey with alpha
    default:
      return "RGBA";
  }
}

// Pixels of `raw` bytes become RGB in place: the raw rows lie at the end of the image's memory, and
// writing starts at its beginning, so it never overtakes reading.
template <class Map>
void expand_in_place(RgbImage& image, int64_t raw, const Map& map) {
  const uint8_t* in = image.hwc.data() + image.width * image.height * (3 - raw);
  uint8_t* out = image.hwc.data();
  for (int64_t i = 0; i < image.width * image.height; ++i, in += raw, out += 3) {
    const Rgb colour = map(in);
    std::memcpy(out, colour.data(), 3);
  }
}

}  // namespace

ImageInfo probe_png(std::string_view bytes, const std::string& source) {
  PngReader reader(bytes, source);
  reader.read_header();
  return {ImageFormat::kPng, reader.width(), reader.height(), mode_of(reader)};
}

RgbImage decode_png(std::string_view bytes, const std::string& source) {
  PngReader reader(bytes, source);
  reader.read_header();
  reader.check_packed_size(bytes);
  RgbImage image(reader.width(), reader.height());
  const bool indexed = reader.colour() == PNG_COLOR_TYPE_PALETTE;
  const int64_t raw = indexed ? 1 : reader.is_grey16() ? 2 : 3;
  const int64_t pixels = image.width * image.height;
  reader.read_pixels(image.hwc.data() + pixels * (3 - raw), image.width * raw);
  if (indexed) {
    const std::vector<Rgb> palette = reader.palette();
    expand_in_place(image, raw, [&palette](const uint8_t* in) { return palette[*in]; });
  } else if (raw == 2) {
    expand_in_place(image, raw, [](const uint8_t* in) {
      const uint8_t v = in[0] ? 255 : in[1];
      return Rgb{v, v, v};
    });
  }
  return image;
}

}  // namespace mgm
