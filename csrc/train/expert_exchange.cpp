#include "train/expert_exchange.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <numeric>

#include "base/error.h"
#include "dist/exchange.h"
#include "dist/rank_groups.h"
#include "types/upload.h"

namespace mgm {
namespace {

// Where the rows of (sender, expert) lie as they came, and so their order by (expert, sender).
std::vector<int64_t> by_expert(const std::vector<std::vector<int64_t>>& counts) {
  std::vector<int64_t> begins;  // [sender][expert]
  int64_t total = 0;
  for (const std::vector<int64_t>& sender : counts) {
    for (const int64_t rows : sender) {
      begins.push_back(total);
      total += rows;
    }
  }
  std::vector<int64_t> order;
  order.reserve(static_cast<size_t>(total));
  const size_t experts = counts.front().size();
  for (size_t e = 0; e < experts; ++e) {
    for (size_t s = 0; s < counts.size(); ++s) {
      for (int64_t i = 0; i < counts[s][e]; ++i) order.push_back(begins[s * experts + e] + i);
    }
  }
  return order;
}

int64_t sum_of(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

// Rows per expert.
std::vector<int64_t> sum_over_senders(const std::vector<std::vector<int64_t>>& counts) {
  std::vector<int64_t> out(counts.front().size(), 0);
  for (const std::vector<int64_t>& sender : counts) {
    for (size_t e = 0; e < out.size(); ++e) out[e] += sender[e];
  }
  return out;
}

}  // namespace

ExpertExchange::ExpertExchange(ParamStore& store, const ShardEngine& engine, Ranks& ranks,
                               int64_t experts)
    : store_(store), engine_(engine), ranks_(ranks), experts_(experts) {
  MGM_CHECK(experts % ranks.topology.expert_ranks == 0, experts, " experts for ",
            ranks.topology.expert_ranks, " ranks");
}

ExpertDispatch::Share ExpertExchange::share() const {
  const int64_t mine = experts_ / ranks_.topology.expert_ranks;
  return {mine * ranks_.topology.expert_rank(), mine};
}

ExpertDispatch::Arrived ExpertExchange::send(const std::string& group, const at::Tensor& rows,
                                             const at::Tensor& extra, const at::Tensor& visits_E) {
  const auto ranks = static_cast<size_t>(ranks_.topology.expert_ranks);
  const int64_t mine = share().count;
  MGM_CHECK(visits_E.size(0) == experts_, visits_E.sizes(), " visits of ", experts_, " experts");
  ProcessGroup& exchange = *ranks_.exchange;

  // Every rank's visits of this rank's experts. The one place where the host waits.
  const std::vector<int64_t> each(ranks, mine);
  const at::Tensor in = at::empty_like(visits_E);
  exchange.all_to_all(in, visits_E.contiguous(), each, each, group + kVisitsLabel).wait();
  const at::Tensor visits = at::stack({visits_E, in}).cpu();
  const int64_t* out_visits = visits.const_data_ptr<int64_t>();
  const int64_t* in_visits = out_visits + experts_;

  Arrived out;
  std::vector<int64_t> to, from;  // rows to and from every rank
  for (size_t r = 0; r < ranks; ++r) {
    const int64_t begin = static_cast<int64_t>(r) * mine;
    to.push_back(std::accumulate(out_visits + begin, out_visits + begin + mine, int64_t{0}));
    out.counts.emplace_back(in_visits + begin, in_visits + begin + mine);
    from.push_back(sum_of(out.counts.back()));
  }

  // Whether the way back is gone must not depend on what this rank has in its batch: text alone may
  // have no gradient where another rank's pictures do.
  at::Tensor sent = rows;
  if (at::GradMode::is_enabled() && !rows.requires_grad() && engine_.passes_gradient(group)) {
    sent = rows.detach().requires_grad_(true);
  }
  out.rows = exchange_rows(exchange, sent, to, from, group);
  if (extra.defined()) {
    out.extra = exchange_rows(exchange, extra, to, from, group + kDrawsLabel);
  }
  // Strict: the rows of each sender by themselves, as if its experts all lay there.
  at::Tensor place;  // else row i of `rows` is row place[i] as it came
  if (!store_.settings().strict) {
    place = upload(at::tensor(by_expert(out.counts), at::kLong), rows.device());
    out.rows = out.rows.index_select(0, place);
    if (extra.defined()) out.extra = out.extra.index_select(0, place);
    out.counts = {sum_over_senders(out.counts)};
  }
  out.send_back = [&exchange, to, from, place,
                   label = group + kResultsLabel](const at::Tensor& results) {
    const at::Tensor as_they_came =
        place.defined() ? at::empty_like(results).index_copy(0, place, results) : results;
    return exchange_rows(exchange, as_they_came, from, to, label);
  };
  return out;
}

void ExpertExchange::enter_lane(const std::string& group, int64_t lane) {
  store_.enter_lane(*store_.find_group(group), static_cast<size_t>(lane));
}

}  // namespace mgm
