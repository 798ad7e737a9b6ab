#include "train/sharded_runner.h"

namespace mgm {
namespace {

class ShardedRunner final : public BlockRunner {
 public:
  ShardedRunner(ShardEngine& engine, std::unique_ptr<BlockRunner> inner)
      : engine_(engine), inner_(std::move(inner)) {}

  Tensors run(const std::string& group, const Tensors& inputs, const BlockBody& body) override {
    const int visit = engine_.before_use(group);
    Tensors outputs = inner_->run(group, inputs, body);
    engine_.after_use(visit, outputs);
    return outputs;
  }

 private:
  ShardEngine& engine_;
  std::unique_ptr<BlockRunner> inner_;
};

}  // namespace

std::unique_ptr<BlockRunner> make_sharded_runner(ShardEngine& engine,
                                                 std::unique_ptr<BlockRunner> inner) {
  return std::make_unique<ShardedRunner>(engine, std::move(inner));
}

}  // namespace mgm
