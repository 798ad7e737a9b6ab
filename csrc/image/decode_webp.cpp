// WebP through libwebp: lossy, lossless, and the first frame of an animation on a black canvas.
#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>

#include "base/error.h"
#include "image/codecs.h"

namespace mgm {
namespace {

// The size and whether there is alpha, from the first bytes.
WebPBitstreamFeatures read_features(std::string_view bytes, const std::string& source) {
  WebPBitstreamFeatures features = {};
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  const VP8StatusCode status = WebPGetFeatures(data, bytes.size(), &features);
  if (status == VP8_STATUS_NOT_ENOUGH_DATA) {
    throw DataError(source, ": WebP is cut: the file ends within the header");
  }
  if (status != VP8_STATUS_OK) throw DataError(source, ": broken WebP: the header is invalid");
  check_size(features.width, features.height, "WebP", source);
  return features;
}

struct DemuxDelete {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};

struct FrameRelease {
  WebPIterator frame = {};
  ~FrameRelease() { WebPDemuxReleaseIterator(&frame); }
};

}  // namespace

ImageInfo probe_webp(std::string_view bytes, const std::string& source) {
  const WebPBitstreamFeatures features = read_features(bytes, source);
  return {ImageFormat::kWebp, features.width, features.height, features.has_alpha ? "RGBA" : "RGB"};
}

RgbImage decode_webp(std::string_view bytes, const std::string& source) {
  const WebPBitstreamFeatures features = read_features(bytes, source);
  const WebPData data = {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
  const std::unique_ptr<WebPDemuxer, DemuxDelete> demuxer(WebPDemux(&data));
  FrameRelease first;
  if (!demuxer || !WebPDemuxGetFrame(demuxer.get(), 1, &first.frame)) {
    throw DataError(source, ": broken or cut WebP: no complete picture inside");
  }
  const WebPIterator& frame = first.frame;
  if (frame.x_offset + frame.width > features.width ||
      frame.y_offset + frame.height > features.height) {
    throw DataError(source, ": broken WebP: a frame of ", frame.width, " x ", frame.height, " at ",
                    frame.x_offset, ", ", frame.y_offset, " does not fit the canvas of ",
                    features.width, " x ", features.height);
  }
  RgbImage image(features.width, features.height);
  const int64_t stride = image.width * 3;
  const int64_t offset = frame.y_offset * stride + frame.x_offset * 3;
  if (!WebPDecodeRGBInto(frame.fragment.bytes, frame.fragment.size, image.hwc.data() + offset,
                         image.hwc.size() - static_cast<size_t>(offset),
                         static_cast<int>(stride))) {
    throw DataError(source, ": broken WebP: the pixel data are damaged or cut");
  }
  return image;
}

}  // namespace mgm
