// mgm preprocess: the tensors the encoders see of one picture.
#include <ATen/ATen.h>

#include <cstring>

#include "assemble/hf_config.h"
#include "base/error.h"
#include "base/file_access.h"
#include "base/fs.h"
#include "checkpoint/tensor_writer.h"
#include "cli/commands.h"
#include "config/reader.h"
#include "image/canvas.h"
#include "image/decode.h"
#include "image/encode.h"
#include "model/image_views.h"

namespace mgm::cli {
namespace {

struct PreprocessArgs {
  std::string image, config, out, png;
};

struct ImageSetup {
  ImageConfig image;
  ImageGeometry geometry;
};

ImageSetup read_setup(const std::string& path) {
  ModelConfig model;
  ImageSetup setup;
  if (fs::is_directory(path)) {
    const fs::path file = fs::path(path) / "config.json";
    const Json json = read_config_json(file);
    const ModelDescription description = read_hf_config(json, file.string());
    model = description.model;
    setup.image = description.image;
  } else {
    const RunConfig config = read_run_configs(path, {}).front().config;
    model = config.model;
    setup.image = config.image;
  }
  const auto made = make_geometry(setup.image, model.vision_tower, model.hr_encoder);
  if (const auto* problem = std::get_if<ConfigProblem>(&made)) {
    throw ConfigError(path, ": ", problem->key, ": ", problem->message);
  }
  setup.geometry = std::get<ImageGeometry>(made);
  return setup;
}

void preprocess(const PreprocessArgs& args) {
  FileUse files;
  files.reads(args.image);
  files.reads(args.config);
  files.writes("--out", args.out);
  if (!args.png.empty()) files.writes("--png", args.png);
  const ImageSetup setup = read_setup(args.config);
  const RgbImage picture = decode_rgb(read_file(args.image), args.image);
  const int64_t side = setup.geometry.hr_size;
  const RgbImage canvas =
      make_canvas(picture, setup.image.aspect, side, pad_colour(setup.image.mean));
  at::Tensor pixels = at::empty({1, side, side, 3}, at::kByte);
  std::memcpy(pixels.mutable_data_ptr<uint8_t>(), canvas.hwc.data(), canvas.hwc.size());
  at::Tensor hr = normalise(pixels, setup.image);
  const at::Tensor lr = lr_views(hr, setup.geometry);
  if (setup.image.hr_source == HrSource::kUpsampledLr) hr = upsampled_lr(hr, setup.geometry);
  write_safetensors(args.out, {{"hr", hr[0].contiguous()}, {"lr", lr[0].contiguous()}});
  if (!args.png.empty()) write_file_atomic(args.png, encode_png(canvas));
}

}  // namespace

void add_preprocess(CLI::App& app) {
  auto args = std::make_shared<PreprocessArgs>();
  CLI::App* command =
      app.add_subcommand("preprocess", "Write the tensors the encoders see of a picture");
  command->add_option("image", args->image, "JPEG, PNG, WebP or GIF")->required();
  command->add_option("--config", args->config, "Run config (YAML) or model directory")->required();
  command->add_option("--out", args->out, "safetensors file: hr [3,S,S], lr [views,3,s,s], float32")
      ->required();
  command->add_option("--png", args->png, "Also write the HR canvas as PNG");
  command->footer(
      "Example:\n"
      "  mgm preprocess cat.jpg --config configs/stage2/vicuna_7b.yaml --out cat.safetensors "
      "--png cat_canvas.png");
  command->callback([args] { preprocess(*args); });
}

}  // namespace mgm::cli
