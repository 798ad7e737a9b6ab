// The experts of a block over the ranks of an expert group (dist.expert_parallel): rows go to the
// rank that holds their expert and their results come back, by all-to-all in both passes
// (dist/exchange.h).
#pragma once

#include "dist/param_store.h"
#include "dist/ranks.h"
#include "dist/shard_engine.h"
#include "nn/expert_dispatch.h"

namespace mgm {

class ExpertExchange final : public ExpertDispatch {
 public:
  // `experts`: of a block. All must outlive the exchange and the graphs it is in.
  ExpertExchange(ParamStore& store, const ShardEngine& engine, Ranks& ranks, int64_t experts);

  Share share() const override;
  Arrived send(const std::string& group, const at::Tensor& rows, const at::Tensor& extra,
               const at::Tensor& visits_E) override;
  void enter_lane(const std::string& group, int64_t lane) override;

 private:
  ParamStore& store_;
  const ShardEngine& engine_;
  Ranks& ranks_;
  int64_t experts_;
};

}  // namespace mgm
