// A small data set on disk and the config that reads it: 4 visual tokens per picture, 32-pixel
// canvases, the embedded tokenizer.
#pragma once

#include <memory>

#include "base/json.h"
#include "data/sample.h"
#include "image/encode.h"
#include "text/tokenizer.h"
#include "unit/data/test_files.h"

namespace mgm {

inline RgbImage noise_image(int64_t width, int64_t height, uint32_t seed) {
  RgbImage image(width, height);
  for (uint8_t& byte : image.hwc) {
    seed = seed * 1664525u + 1013904223u;
    byte = static_cast<uint8_t>(seed >> 24);
  }
  return image;
}

inline uint32_t png_crc(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

// A small file whose header promises width x height pixels.
inline std::string png_that_claims(uint32_t width, uint32_t height) {
  std::string png = encode_png(noise_image(8, 8, 1));
  const auto put = [&](size_t at, uint32_t value) {
    for (size_t k = 0; k < 4; ++k) png[at + k] = static_cast<char>(value >> (24 - 8 * k));
  };
  put(16, width);
  put(20, height);
  put(29, png_crc(std::string_view(png).substr(12, 17)));
  return png;
}

class SmallData {
 public:
  SmallData() : tokenizer(load_tokenizer(MGM_SOURCE_DIR "/data/embedded/tokenizer")) {
    config.model.llm.vocab_size = tokenizer->vocab_size();
    config.model.vision_tower.image_size = 28;
    config.image.hr_size = 32;
    config.text.max_length = 256;
    config.data.sources = {{dir.path("data.json"), dir.path("images"), {}}};
    config.data.workers = 2;
    config.data.prefetch = 3;
    dir.write("images/a.png", encode_png(noise_image(40, 24, 1)));
    dir.write("images/b.jpg", encode_jpeg(noise_image(24, 40, 2), 90));
  }

  // {"id": id, "image": images, human / gpt alternating}
  static OrderedJson record(const std::string& id, const std::vector<std::string>& images,
                            const std::vector<std::string>& texts) {
    OrderedJson out;
    out["id"] = id;
    if (images.size() == 1) out["image"] = images[0];
    if (images.size() > 1) out["image"] = images;
    for (size_t t = 0; t < texts.size(); ++t) {
      out["conversations"].push_back({{"from", t % 2 == 0 ? "human" : "gpt"}, {"value", texts[t]}});
    }
    return out;
  }

  // `n` good records of every kind: with a picture, text only, with two pictures, many turns.
  static std::vector<OrderedJson> records(int n) {
    std::vector<OrderedJson> out;
    for (int i = 0; i < n; ++i) {
      const std::string id = cat("r", i), answer = cat("A thing numbered ", i * i, ".");
      switch (i % 4) {
        case 0:
          out.push_back(record(id, {"a.png"}, {"<image>\nWhat is this?", answer}));
          break;
        case 1:
          out.push_back(record(id, {}, {cat("Say ", i, "."), answer, "Again?", "No."}));
          break;
        case 2:
          out.push_back(record(id, {"b.jpg"}, {"<image>\nWhat?", answer, "Sure?", "Yes."}));
          break;
        default:
          out.push_back(record(id, {"a.png", "b.jpg"}, {"<image>\n<image>\nWhich?", answer}));
      }
    }
    return out;
  }

  void write(const std::vector<OrderedJson>& data) {
    dir.write("data.json", OrderedJson(data).dump());
  }

  TempDir dir;
  RunConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
};

// The index and builder over what `data` has on disk now.
struct OpenData {
  explicit OpenData(const SmallData& data)
      : index(data.config.data.sources), builder(data.config, index, *data.tokenizer) {}
  AnnotationIndex index;
  SampleBuilder builder;
};

}  // namespace mgm
