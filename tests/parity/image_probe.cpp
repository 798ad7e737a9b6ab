// Drives csrc/image for tests/parity/test_image_parity.py. Reads one command a line from stdin:
//   info PATH | decode PATH | canvas pad|square SIDE PATH | resize WIDTH HEIGHT PATH | table
// and answers with a line, "ok ..." or "error MESSAGE"; "ok WIDTH HEIGHT" is followed by the RGB
// bytes, the table's "ok COUNT" by that many float32.
#include <exception>
#include <iostream>
#include <sstream>

#include "base/error.h"
#include "base/fs.h"
#include "image/canvas.h"
#include "image/decode.h"
#include "image/resize.h"

namespace mgm {
namespace {

void put_image(const RgbImage& image) {
  std::cout << "ok " << image.width << " " << image.height << "\n";
  std::cout.write(reinterpret_cast<const char*>(image.hwc.data()),
                  static_cast<std::streamsize>(image.hwc.size()));
}

// The last decoded picture, so that several canvases of it cost one decode.
const RgbImage& decoded(const std::string& path) {
  static std::string last;
  static RgbImage image;
  if (path != last) {
    last.clear();
    image = decode_rgb(read_file(path), path);
    last = path;
  }
  return image;
}

std::string rest_of(std::istringstream& line) {
  std::string path;
  line >> std::ws;
  std::getline(line, path);
  return path;
}

void answer(const std::string& text) {
  std::istringstream line(text);
  std::string command;
  line >> command;
  const ImageConfig config;
  if (command == "info") {
    const std::string path = rest_of(line);
    const ImageInfo info = probe(read_file(path), path);
    std::cout << "ok " << format_name(info.format) << " " << info.width << " " << info.height << " "
              << info.mode << "\n";
  } else if (command == "decode") {
    put_image(decoded(rest_of(line)));
  } else if (command == "canvas") {
    std::string aspect;
    int64_t side = 0;
    line >> aspect >> side;
    put_image(make_canvas(decoded(rest_of(line)),
                          aspect == "pad" ? ImageAspect::kPad : ImageAspect::kSquare, side,
                          pad_colour(config.mean)));
  } else if (command == "resize") {
    int64_t width = 0, height = 0;
    line >> width >> height;
    put_image(resize_bicubic(decoded(rest_of(line)), width, height));
  } else if (command == "table") {
    const auto table = normalisation_table(config.mean, config.std);
    std::cout << "ok " << table.size() << "\n";
    std::cout.write(reinterpret_cast<const char*>(table.data()), sizeof table);
  } else {
    throw ConfigError("unknown command '", command, "'");
  }
}

}  // namespace
}  // namespace mgm

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    try {
      mgm::answer(line);
    } catch (const mgm::Error& e) {
      std::cout << "error " << static_cast<int>(e.code()) << " " << e.what() << "\n";
    }
    std::cout.flush();
  }
}
