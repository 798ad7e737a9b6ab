#include "image/decode.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/strings.h"
#include "image/codecs.h"

namespace mgm {
namespace {

using namespace std::string_view_literals;

std::optional<ImageFormat> sniff(std::string_view bytes) {
  if (bytes.starts_with("\xff\xd8\xff"sv)) return ImageFormat::kJpeg;
  if (bytes.starts_with("\x89PNG\r\n\x1a\n"sv)) return ImageFormat::kPng;
  if (bytes.starts_with("GIF87a"sv) || bytes.starts_with("GIF89a"sv)) return ImageFormat::kGif;
  if (bytes.starts_with("RIFF"sv) && bytes.substr(0, 12).ends_with("WEBP"sv)) {
    return ImageFormat::kWebp;
  }
  return std::nullopt;
}

// What a file that is none of ours seems to be, to help whoever has to find it.
std::string describe_unknown(std::string_view bytes) {
  if (bytes.empty()) return "the file is empty";
  struct Magic {
    std::string_view prefix;
    const char* name;
  };
  constexpr Magic kOthers[] = {{"BM", "a BMP picture"},         {"II*\0"sv, "a TIFF picture"},
                               {"MM\0*"sv, "a TIFF picture"},   {"%PDF", "a PDF document"},
                               {"<svg", "an SVG drawing"},      {"8BPS", "a Photoshop file"},
                               {"\0\0\1\0"sv, "an ICO picture"}};
  for (const Magic& magic : kOthers) {
    if (bytes.starts_with(magic.prefix)) return cat("this looks like ", magic.name);
  }
  if (bytes.size() >= 12 && bytes.substr(4, 4) == "ftyp") {
    return "this looks like an AVIF or HEIC picture";
  }
  const std::string text = to_lower(trim(bytes.substr(0, std::min<size_t>(bytes.size(), 64))));
  if (text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("{\"")) {
    return "this looks like a web page, so the download has probably failed";
  }
  std::string hex;
  for (const char c : bytes.substr(0, 8)) hex += strf(" %02x", static_cast<unsigned char>(c));
  return cat("the file begins with the bytes", hex);
}

ImageFormat sniff_or_throw(std::string_view bytes, const std::string& source) {
  const std::optional<ImageFormat> format = sniff(bytes);
  if (!format) {
    throw DataError(source, ": not a picture in a supported format (JPEG, PNG, WebP, GIF): ",
                    describe_unknown(bytes), ". Convert or replace it.");
  }
  return *format;
}

}  // namespace

const char* format_name(ImageFormat format) {
  switch (format) {
    case ImageFormat::kJpeg:
      return "JPEG";
    case ImageFormat::kPng:
      return "PNG";
    case ImageFormat::kWebp:
      return "WebP";
    case ImageFormat::kGif:
      return "GIF";
  }
  throw InternalError("unknown image format");
}

void check_size(int64_t width, int64_t height, const char* what, const std::string& source) {
  if (width < 1 || height < 1) {
    throw DataError(source, ": ", what, " picture of ", width, " x ", height, " pixels is empty");
  }
  if (width > kMaxSide || height > kMaxSide) {
    throw DataError(source, ": ", what, " picture of ", width, " x ", height,
                    " pixels: a side is above the limit of ", kMaxSide, "; scale it down");
  }
  if (width * height > kMaxPixels) {
    throw DataError(source, ": ", what, " picture of ", width, " x ", height, " = ", width * height,
                    " pixels is above the limit of ", kMaxPixels, " pixels; scale it down");
  }
}

ImageInfo probe(std::string_view bytes, const std::string& source) {
  switch (sniff_or_throw(bytes, source)) {
    case ImageFormat::kJpeg:
      return probe_jpeg(bytes, source);
    case ImageFormat::kPng:
      return probe_png(bytes, source);
    case ImageFormat::kWebp:
      return probe_webp(bytes, source);
    case ImageFormat::kGif:
      return probe_gif(bytes, source);
  }
  throw InternalError("unknown image format");
}

RgbImage decode_rgb(std::string_view bytes, const std::string& source) {
  switch (sniff_or_throw(bytes, source)) {
    case ImageFormat::kJpeg:
      return decode_jpeg(bytes, source);
    case ImageFormat::kPng:
      return decode_png(bytes, source);
    case ImageFormat::kWebp:
      return decode_webp(bytes, source);
    case ImageFormat::kGif:
      return decode_gif(bytes, source);
  }
  throw InternalError("unknown image format");
}

}  // namespace mgm
