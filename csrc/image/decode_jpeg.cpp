// JPEG through libjpeg-turbo with its defaults (accurate integer IDCT, fancy upsampling), which are
// Pillow's. CMYK is taken as inverted whatever the Adobe marker says, as Pillow does.
#include "base/error.h"
#include "image/codecs.h"
#include "image/jpeg_errors.h"

namespace mgm {
namespace {

// A progressive file may repeat scans without end, each costing a pass over the whole picture.
constexpr int kMaxScans = 500;

// libjpeg over a byte string.
class JpegReader {
 public:
  explicit JpegReader(const std::string& source) : name_(source) {
    info_.err = &errors_.manager;
    run([this] { jpeg_create_decompress(&info_); });
  }
  ~JpegReader() { jpeg_destroy_decompress(&info_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  // Everything up to the pixels. `bytes` must outlive the reader.
  void read_header(std::string_view bytes) {
    source_.next_input_byte = reinterpret_cast<const JOCTET*>(bytes.data());
    source_.bytes_in_buffer = bytes.size();
    source_.init_source = source_.term_source = [](j_decompress_ptr) {};
    source_.resync_to_restart = jpeg_resync_to_restart;
    // All bytes are there from the start, so asking for more means that the file has been cut.
    source_.fill_input_buffer = [](j_decompress_ptr info) -> boolean {
      ERREXIT(info, JERR_INPUT_EOF);
      return FALSE;
    };
    source_.skip_input_data = [](j_decompress_ptr info, long count) {
      if (count <= 0) return;
      if (static_cast<size_t>(count) > info->src->bytes_in_buffer) ERREXIT(info, JERR_INPUT_EOF);
      info->src->next_input_byte += count;
      info->src->bytes_in_buffer -= static_cast<size_t>(count);
    };
    progress_.progress_monitor = [](j_common_ptr info) {
      if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMaxScans) {
        ERREXIT(info, JERR_BAD_PROGRESSION);
      }
    };
    info_.src = &source_;
    info_.progress = &progress_;
    run([this] { jpeg_read_header(&info_, TRUE); });
    const int channels = info_.num_components;
    if (channels != 1 && channels != 3 && channels != 4) {
      throw DataError(name_, ": JPEG with ", channels, " channels; 1, 3 and 4 are supported");
    }
    check_size(info_.image_width, info_.image_height, "JPEG", name_);
  }

  int channels() const { return info_.num_components; }
  int64_t width() const { return info_.image_width; }
  int64_t height() const { return info_.image_height; }

  void start() {
    info_.out_color_space = channels() == 1 ? JCS_GRAYSCALE : channels() == 3 ? JCS_RGB : JCS_CMYK;
    run([this] { jpeg_start_decompress(&info_); });
  }
  // The next row, width * channels bytes.
  void read_row(uint8_t* row) {
    run([this, row] {
      JSAMPROW rows[1] = {row};
      jpeg_read_scanlines(&info_, rows, 1);
    });
  }

 private:
  template <class Body>
  void run(const Body& body) {
    if (errors_.guard(body)) return;
    if (errors_.manager.msg_code == JERR_INPUT_EOF) {
      throw DataError(name_, ": JPEG is cut: the file ends before the picture does");
    }
    throw DataError(name_, ": broken JPEG: ", errors_.message);
  }

  std::string name_;
  JpegErrors errors_;
  jpeg_source_mgr source_ = {};
  jpeg_progress_mgr progress_ = {};
  jpeg_decompress_struct info_ = {};
};

// a * b / 255, rounded.
int multiply(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

void cmyk_to_rgb(const uint8_t* cmyk, int64_t pixels, uint8_t* rgb) {
  for (int64_t x = 0; x < pixels; ++x, cmyk += 4, rgb += 3) {
    const int white = cmyk[3];  // stored inverted: 255 - K
    for (int c = 0; c < 3; ++c) {
      rgb[c] = static_cast<uint8_t>(white - multiply(255 - cmyk[c], white));
    }
  }
}

}  // namespace

ImageInfo probe_jpeg(std::string_view bytes, const std::string& source) {
  JpegReader reader(source);
  reader.read_header(bytes);
  const char* mode = reader.channels() == 1 ? "L" : reader.channels() == 3 ? "RGB" : "CMYK";
  return {ImageFormat::kJpeg, reader.width(), reader.height(), mode};
}

RgbImage decode_jpeg(std::string_view bytes, const std::string& source) {
  JpegReader reader(source);
  reader.read_header(bytes);
  reader.start();
  RgbImage image(reader.width(), reader.height());
  std::vector<uint8_t> row(static_cast<size_t>(image.width * reader.channels()));
  for (int64_t y = 0; y < image.height; ++y) {
    uint8_t* out = image.row(y);
    if (reader.channels() == 3) {
      reader.read_row(out);
      continue;
    }
    reader.read_row(row.data());
    if (reader.channels() == 4) {
      cmyk_to_rgb(row.data(), image.width, out);
      continue;
    }
    for (int64_t x = 0; x < image.width; ++x) {
      out[3 * x] = out[3 * x + 1] = out[3 * x + 2] = row[static_cast<size_t>(x)];
    }
  }
  return image;
}

}  // namespace mgm
