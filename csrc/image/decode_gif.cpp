// The first frame of a GIF, placed on the canvas as Pillow places it: the canvas grows to hold the
// frame, and around the frame it has the transparent colour, or colour 0. Own code, because giflib
// turns damaged LZW codes into arbitrary pixels without a word.
#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/error.h"
#include "image/codecs.h"

namespace mgm {
namespace {

[[noreturn]] void fail_cut(const std::string& name) {
  throw DataError(name, ": GIF is cut: the file ends before the picture does");
}

[[noreturn]] void fail_broken(const std::string& name, const char* what) {
  throw DataError(name, ": broken GIF: ", what);
}

// Reads forward through the file and never past its end.
class GifBytes {
 public:
  GifBytes(std::string_view bytes, const std::string& source) : name_(source), rest_(bytes) {}

  const uint8_t* take(size_t count) {
    if (count > rest_.size()) fail_cut(name_);
    const auto* at = reinterpret_cast<const uint8_t*>(rest_.data());
    rest_.remove_prefix(count);
    return at;
  }
  uint8_t byte() { return *take(1); }
  // A sub-block; empty ends a chain of them.
  std::string_view block() {
    const size_t size = byte();
    return {reinterpret_cast<const char*>(take(size)), size};
  }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  std::string_view rest_;
};

// LZW with variable code sizes, as the GIF89a specification describes it (appendix F).
class LzwReader {
 public:
  explicit LzwReader(GifBytes& bytes) : bytes_(bytes), bits_(read_bits(bytes)), clear_(1 << bits_) {
    reset();
  }

  void read(uint8_t* out, int64_t count) {
    while (count > 0) {
      if (begin_ == kTableSize) expand_code();
      const int64_t n = std::min<int64_t>(count, kTableSize - begin_);
      std::memcpy(out, text_ + begin_, static_cast<size_t>(n));
      begin_ += static_cast<int>(n);
      out += n;
      count -= n;
    }
  }

 private:
  static constexpr int kMaxCodeBits = 12;
  static constexpr int kTableSize = 1 << kMaxCodeBits;

  static int read_bits(GifBytes& bytes) {
    const int bits = bytes.byte();
    if (bits > kMaxCodeBits) fail_broken(bytes.name(), "the LZW code size is above 12 bits");
    return bits;
  }

  void reset() {
    next_ = clear_ + 2;
    code_bits_ = bits_ + 1;
    previous_ = -1;
  }

  int read_code() {
    while (num_buffered_ < code_bits_) {
      if (block_.empty()) {
        block_ = bytes_.block();
        if (block_.empty()) fail_broken(bytes_.name(), "the pixel data end early");
      }
      buffered_ |= uint32_t{static_cast<uint8_t>(block_.front())} << num_buffered_;
      num_buffered_ += 8;
      block_.remove_prefix(1);
    }
    const uint32_t code = buffered_ & ((1u << code_bits_) - 1);
    buffered_ >>= code_bits_;
    num_buffered_ -= code_bits_;
    return static_cast<int>(code);
  }

  void push(int value) {
    if (begin_ == 0) fail_broken(bytes_.name(), "an LZW string is too long");
    text_[--begin_] = static_cast<uint8_t>(value);
  }

  // Puts the pixels of the next code at the end of text_.
  void expand_code() {
    int code = read_code();
    while (code == clear_) {
      reset();
      code = read_code();
    }
    if (code == clear_ + 1) fail_broken(bytes_.name(), "the pixel data end early");
    if (previous_ < 0) {  // the first code after a clear code stands for itself
      if (code > clear_) fail_broken(bytes_.name(), "invalid LZW code");
      push(code);
      first_ = code;
      previous_ = code;
      return;
    }
    if (code > next_) fail_broken(bytes_.name(), "invalid LZW code");
    int link = code;
    if (link == next_) {  // the string that this code is about to define
      push(first_);
      link = previous_;
    }
    while (link >= clear_) {
      if (link >= kTableSize) fail_broken(bytes_.name(), "invalid LZW code");
      push(last_of_[link]);
      link = prefix_of_[link];
    }
    push(link);
    first_ = link;
    if (next_ < kTableSize) {
      last_of_[next_] = static_cast<uint8_t>(link);
      prefix_of_[next_] = static_cast<uint16_t>(previous_);
      if (next_ == (1 << code_bits_) - 1 && code_bits_ < kMaxCodeBits) ++code_bits_;
      ++next_;
    }
    previous_ = code;
  }

  GifBytes& bytes_;
  const int bits_, clear_;  // size of a pixel; the code after all pixels
  int next_ = 0;            // the code that is defined next
  int code_bits_ = 0;       // size of a code now
  int previous_ = -1;       // the last code, or -1 after a clear code
  int first_ = 0;           // first pixel of the last string
  uint32_t buffered_ = 0;
  int num_buffered_ = 0;
  std::string_view block_;
  uint8_t text_[kTableSize] = {};  // the current string, right aligned
  int begin_ = kTableSize;
  uint8_t last_of_[kTableSize] = {};
  uint16_t prefix_of_[kTableSize] = {};
};

// Everything before the pixels of the first frame.
struct GifHeader {
  int64_t width = 0, height = 0;  // the canvas
  int64_t left = 0, top = 0, frame_width = 0, frame_height = 0;
  bool interlaced = false;
  std::optional<uint8_t> transparent;
  std::optional<std::vector<Rgb>> palette;  // 256 colours; without one, indices are greys
  const char* mode = "L";
};

int64_t u16(const uint8_t* at) { return at[0] | at[1] << 8; }

// Replaces the palette by the one that follows; colours it does not define are black. As in Pillow,
// a palette of the greys 0, 1, 2, ... counts as none: then a frame keeps the file's palette.
void read_palette(GifBytes& bytes, int flags, GifHeader& header) {
  std::vector<Rgb> colours(256);
  bool is_grey = true;
  const size_t count = size_t{2} << (flags & 7);
  const uint8_t* at = bytes.take(3 * count);
  for (size_t i = 0; i < count; ++i) {
    colours[i] = {at[3 * i], at[3 * i + 1], at[3 * i + 2]};
    is_grey = is_grey && colours[i] == Rgb{uint8_t(i), uint8_t(i), uint8_t(i)};
  }
  if (!is_grey) header.palette = std::move(colours);
  header.mode = is_grey ? "L" : "P";
}

void read_extension(GifBytes& bytes, GifHeader& header) {
  const bool graphics_control = bytes.byte() == 0xf9;
  std::string_view block = bytes.block();
  // Flags, delay (2 bytes), transparent colour.
  if (graphics_control && block.size() >= 4 && (block[0] & 1)) {
    header.transparent = static_cast<uint8_t>(block[3]);
  }
  while (!block.empty()) block = bytes.block();
}

// Leaves `bytes` before the LZW code size.
GifHeader read_header(GifBytes& bytes) {
  GifHeader header;
  const uint8_t* screen =
      bytes.take(13);  // signature (6), width, height, flags, background, aspect
  const int64_t width = u16(screen + 6), height = u16(screen + 8);
  if (screen[10] & 0x80) read_palette(bytes, screen[10], header);
  while (true) {
    const uint8_t type = bytes.byte();
    if (type == ',') break;
    if (type == ';') throw DataError(bytes.name(), ": GIF without a picture");
    if (type == '!') read_extension(bytes, header);
    // Anything else is junk between blocks, which readers skip.
  }
  const uint8_t* frame = bytes.take(9);  // left, top, width, height, flags
  header.left = u16(frame);
  header.top = u16(frame + 2);
  header.frame_width = u16(frame + 4);
  header.frame_height = u16(frame + 6);
  header.interlaced = frame[8] & 0x40;
  if (frame[8] & 0x80) read_palette(bytes, frame[8], header);
  header.width = std::max(width, header.left + header.frame_width);
  header.height = std::max(height, header.top + header.frame_height);
  check_size(header.frame_width, header.frame_height, "GIF", bytes.name());
  check_size(header.width, header.height, "GIF", bytes.name());
  return header;
}

}  // namespace

ImageInfo probe_gif(std::string_view bytes, const std::string& source) {
  GifBytes reader(bytes, source);
  const GifHeader header = read_header(reader);
  return {ImageFormat::kGif, header.width, header.height, header.mode};
}

RgbImage decode_gif(std::string_view bytes, const std::string& source) {
  GifBytes reader(bytes, source);
  const GifHeader header = read_header(reader);
  std::vector<Rgb> palette(256);
  for (size_t i = 0; i < 256; ++i) {
    const auto grey = static_cast<uint8_t>(i);
    palette[i] = header.palette ? (*header.palette)[i] : Rgb{grey, grey, grey};
  }
  RgbImage image(header.width, header.height);
  const Rgb around = palette[header.transparent.value_or(0)];
  for (size_t i = 0; i < image.hwc.size(); i += 3) std::copy_n(around.data(), 3, &image.hwc[i]);

  LzwReader pixels(reader);
  std::vector<uint8_t> row(static_cast<size_t>(header.frame_width));
  const auto read_rows = [&](int64_t first, int64_t step) {
    for (int64_t y = first; y < header.frame_height; y += step) {
      pixels.read(row.data(), header.frame_width);
      uint8_t* out = image.row(header.top + y) + header.left * 3;
      for (const uint8_t index : row) out = std::copy_n(palette[index].data(), 3, out);
    }
  };
  if (header.interlaced) {
    read_rows(0, 8);
    read_rows(4, 8);
    read_rows(2, 4);
    read_rows(1, 2);
  } else {
    read_rows(0, 1);
  }
  return image;
}

}  // namespace mgm
