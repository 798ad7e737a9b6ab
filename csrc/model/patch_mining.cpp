#include "model/patch_mining.h"

#include <ATen/ATen.h>

namespace mgm {

ops::MiningGeometry mining_geometry(const ImageGeometry& geometry) {
  return {geometry.grid, geometry.global, geometry.lr_patches, geometry.window};
}

PatchMining::PatchMining(int64_t lr_width, int64_t hr_channels, const ImageGeometry& geometry,
                         MiningKernel kernel)
    : Module("model", "model.vlm_uni"),
      geometry_(mining_geometry(geometry)),
      form_(kernel == MiningKernel::kAbsorbed ? ops::MiningForm::kAbsorbed
                                              : ops::MiningForm::kReference),
      query_(head("vlm_uni_query_projector", lr_width, lr_width)),
      key_(head("vlm_uni_aux_projector", hr_channels, lr_width)),
      value_(head("vlm_uni_val_projector", hr_channels, lr_width)) {}

PatchMining::Head PatchMining::head(const std::string& name, int64_t in, int64_t out) {
  LayerNorm& norm = add<LayerNorm>(child_name(name + ".0"), group(), in, 1e-5);
  Linear& linear = add<Linear>(child_name(name + ".1"), group(), in, out, true,
                               Linear::Inits{torch_linear_init(in), torch_linear_init(in)});
  return {&norm, &linear};
}

Tensors PatchMining::operator()(const at::Tensor& lr_VNC, const std::vector<at::Tensor>& maps,
                                const ForwardContext& ctx) const {
  Tensors inputs = {lr_VNC};
  inputs.insert(inputs.end(), maps.begin(), maps.end());
  return ctx.runner.run(group(), inputs, [this](const Tensors& in) -> Tensors {
    const auto weights = [](const Head& h) {
      return ops::MiningProjection{h.norm->weight().value, h.norm->bias().value,
                                   h.linear->weight().value, h.linear->bias().value};
    };
    const ops::MiningParams params{weights(query_), weights(key_), weights(value_)};
    const ops::Mined mined =
        ops::mine(form_, in[0], Tensors(in.begin() + 1, in.end()), params, geometry_);
    return {mined.tokens, mined.attention};
  });
}

}  // namespace mgm
