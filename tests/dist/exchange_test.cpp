// A toy block of experts that lie on different ranks beside the same block on one: values and all
// gradients, with experts and ranks that get no token at all.
#include "dist/exchange.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "grad_check.h"
#include "rank_threads.h"

namespace mgm {
namespace {

constexpr int64_t kWidth = 5, kExpertsPerRank = 2, kTokensPerRank = 7;

// Token t of rank r goes to this expert; some experts, and with `skewed` whole ranks, get none.
int64_t expert_of(int rank, int64_t token, int64_t experts, bool skewed) {
  return skewed ? (rank + token) % 2 : (3 * rank + token * token) % (experts - 1);
}

at::Tensor noise(uint64_t seed, at::IntArrayRef shape) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::TensorOptions(at::kDouble));
}

at::Tensor expert_weight(int64_t expert) {
  return noise(1000 + uint64_t(expert), {kWidth, kWidth}).requires_grad_(true);
}
at::Tensor tokens_of(int rank) {
  return noise(1 + uint64_t(rank), {kTokensPerRank, kWidth}).requires_grad_(true);
}
at::Tensor run_expert(const at::Tensor& x, const at::Tensor& weight) {
  return at::tanh(at::matmul(x, weight));
}

// How many rows this rank receives from each rank when it sends sent[r] to rank r.
std::vector<int64_t> exchange_counts(ProcessGroup& control, const std::vector<int64_t>& sent) {
  const at::Tensor in = at::tensor(sent, at::kLong), out = at::empty_like(in);
  const std::vector<int64_t> one(sent.size(), 1);
  control.all_to_all(out, in, one, one, "rows to exchange").wait();
  const int64_t* data = out.const_data_ptr<int64_t>();
  return {data, data + out.numel()};
}

struct Exchanged {
  std::vector<at::Tensor> outputs, token_grads, weight_grads;
};

Exchanged one_rank(int world, bool skewed) {
  const int64_t experts = world * kExpertsPerRank;
  std::vector<at::Tensor> weights, tokens;
  for (int64_t e = 0; e < experts; ++e) weights.push_back(expert_weight(e));
  Exchanged out;
  at::Tensor loss = at::zeros({}, at::kDouble);
  for (int rank = 0; rank < world; ++rank) {
    tokens.push_back(tokens_of(rank));
    std::vector<at::Tensor> rows;
    for (int64_t t = 0; t < kTokensPerRank; ++t) {
      rows.push_back(run_expert(tokens.back().narrow(0, t, 1),
                                weights[size_t(expert_of(rank, t, experts, skewed))]));
    }
    out.outputs.push_back(at::cat(rows).detach());
    loss = loss + at::cat(rows).square().sum();
  }
  loss.backward();
  for (const at::Tensor& x : tokens) out.token_grads.push_back(x.grad());
  for (const at::Tensor& w : weights) {
    out.weight_grads.push_back(w.grad().defined() ? w.grad() : at::zeros_like(w));
  }
  return out;
}

void expert_rank(Ranks& ranks, bool skewed, const Exchanged& want) {
  const int world = ranks.size(), rank = ranks.rank();
  const int64_t experts = world * kExpertsPerRank;
  const at::Tensor x = tokens_of(rank);
  std::vector<at::Tensor> mine;
  for (int64_t e = 0; e < kExpertsPerRank; ++e) {
    mine.push_back(expert_weight(rank * kExpertsPerRank + e));
  }
  // Tokens in the order of their experts, so also of the ranks that hold them.
  std::vector<int64_t> order(kTokensPerRank), to_expert(static_cast<size_t>(experts), 0);
  std::iota(order.begin(), order.end(), 0);
  const auto expert = [&](int64_t t) { return expert_of(rank, t, experts, skewed); };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return expert(a) < expert(b); });
  for (int64_t t = 0; t < kTokensPerRank; ++t) ++to_expert[size_t(expert(t))];
  std::vector<int64_t> sent(static_cast<size_t>(world), 0);
  for (int64_t e = 0; e < experts; ++e) sent[size_t(e / kExpertsPerRank)] += to_expert[size_t(e)];
  const std::vector<int64_t> received = exchange_counts(*ranks.control, sent);

  const at::Tensor permutation = at::tensor(order, at::kLong);
  const at::Tensor arrived = exchange_rows(*ranks.world, x.index_select(0, permutation), sent,
                                           received, "tokens to experts");
  // Which expert each arrived row is for; the sender's rule is known to everybody here.
  std::vector<int64_t> kind;
  for (int from = 0; from < world; ++from) {
    std::vector<int64_t> theirs;
    for (int64_t t = 0; t < kTokensPerRank; ++t) {
      const int64_t e = expert_of(from, t, experts, skewed);
      if (e / kExpertsPerRank == rank) theirs.push_back(e % kExpertsPerRank);
    }
    std::sort(theirs.begin(), theirs.end());
    kind.insert(kind.end(), theirs.begin(), theirs.end());
  }
  at::Tensor done = at::zeros_like(arrived);
  for (int64_t e = 0; e < kExpertsPerRank; ++e) {
    std::vector<int64_t> rows;
    for (size_t i = 0; i < kind.size(); ++i) {
      if (kind[i] == e) rows.push_back(int64_t(i));
    }
    const at::Tensor index = at::tensor(rows, at::kLong);
    done = done.index_add(0, index, run_expert(arrived.index_select(0, index), mine[size_t(e)]));
  }
  const at::Tensor back = exchange_rows(*ranks.world, done, received, sent, "tokens from experts");
  const at::Tensor y = at::zeros_like(back).index_copy(0, permutation, back);
  y.square().sum().backward();

  EXPECT_TRUE(near_l2(y, want.outputs[size_t(rank)], 1e-14));
  EXPECT_TRUE(near_l2(x.grad(), want.token_grads[size_t(rank)], 1e-13));
  for (int64_t e = 0; e < kExpertsPerRank; ++e) {
    const at::Tensor grad = mine[size_t(e)].grad();
    EXPECT_TRUE(near_l2(grad.defined() ? grad : at::zeros({kWidth, kWidth}, at::kDouble),
                        want.weight_grads[size_t(rank * kExpertsPerRank + e)], 1e-13))
        << "expert " << e << " of rank " << rank;
  }
}

TEST(Exchange, ExpertsOnManyRanksEqualExpertsOnOne) {
  for (const int world : {2, 3, 4}) {
    for (const bool skewed : {false, true}) {
      const Exchanged want = one_rank(world, skewed);
      // The last expert gets no token; its rank takes part all the same.
      EXPECT_EQ(want.weight_grads.back().norm().item<double>(), 0);
      run_ranks(world, {}, [&](Ranks& ranks) { expert_rank(ranks, skewed, want); });
    }
  }
}

}  // namespace
}  // namespace mgm
