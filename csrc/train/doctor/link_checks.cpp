#include "train/doctor/link_checks.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/timer.h"

namespace mgm {
namespace {

constexpr int64_t kElements = 1031;  // prime: no group size divides it
constexpr int64_t kPattern = 7;      // values repeat after so many

at::Tensor pattern(int64_t factor, at::Device device) {
  const at::Tensor out = at::arange(kElements, at::kFloat).remainder_(kPattern).add_(1);
  return out.mul_(static_cast<double>(factor)).to(device);
}

// Of the first wrong element; "" if there is none.
std::string first_wrong(const at::Tensor& have, const at::Tensor& want) {
  const at::Tensor wrong = have.ne(want).nonzero();
  if (wrong.size(0) == 0) return "";
  const auto i = wrong[0][0].item<int64_t>();
  return cat(wrong.size(0), " of ", want.numel(), " values; element ", i, " is ",
             have[i].item<float>(), ", should be ", want[i].item<float>());
}

// Rows from rank to rank, of another number for each pair, as to dealt experts; rank 0 sends none.
// What is wrong with those that came; "" if nothing is.
std::string wrong_exchange(ProcessGroup& group, at::Device device) {
  const int64_t n = group.size(), me = group.rank();
  const auto count = [](int64_t from, int64_t to) { return from == 0 ? 0 : 1 + (from + to) % 3; };
  const auto rows = [&](int64_t from, int64_t to) {
    return pattern(from * n + to + 1, device).expand({count(from, to), kElements});
  };
  std::vector<int64_t> to, from;
  std::vector<at::Tensor> sent, want;
  for (int64_t r = 0; r < n; ++r) {
    to.push_back(count(me, r));
    from.push_back(count(r, me));
    sent.push_back(rows(me, r));
    want.push_back(rows(r, me));
  }
  const at::Tensor in = at::cat(sent), wanted = at::cat(want), out = at::zeros_like(wanted);
  group.all_to_all(out, in, from, to, "check of exchanges").wait();
  return first_wrong(out.flatten(), wanted.flatten());
}

void check_group(ProcessGroup& group, at::Device device, Findings& out) {
  const int64_t n = group.size();
  const at::Tensor sum = pattern(group.rank() + 1, device);
  group.all_reduce_sum(sum, "check of sums").wait();
  const at::Tensor mine = pattern(group.rank() + 1, device);
  const at::Tensor all = at::empty({n * kElements}, mine.options());
  group.all_gather(all, mine, "check of gathers").wait();
  std::vector<at::Tensor> parts;
  for (int64_t r = 0; r < n; ++r) parts.push_back(pattern(r + 1, device));
  const std::string exchanged = wrong_exchange(group, device);
  const std::string sums = first_wrong(sum, pattern(n * (n + 1) / 2, device));
  const std::string gathers = first_wrong(all, at::cat(parts));
  const std::string where = cat("group '", group.name(), "' of ", n, " ranks on ", device.str());
  const std::string advice =
      "a link, a GPU or NCCL's transport is damaged: NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1 tells "
      "which; take the host out";
  if (!sums.empty()) {
    out.push_back(
        failed("links", ExitCode::kDist, cat("all-reduce in ", where, ": ", sums), advice));
  }
  if (!gathers.empty()) {
    out.push_back(
        failed("links", ExitCode::kDist, cat("all-gather in ", where, ": ", gathers), advice));
  }
  if (!exchanged.empty()) {
    out.push_back(
        failed("links", ExitCode::kDist, cat("all-to-all in ", where, ": ", exchanged), advice));
  }
}

}  // namespace

Findings check_reductions(Ranks& ranks, const DeviceSetup& device) {
  Findings out;
  std::vector<std::string> names;
  const auto check = [&](ProcessGroup& group, at::Device on) {
    if (group.size() == 1) return;
    check_group(group, on, out);
    names.push_back(group.name());
  };
  check(*ranks.control, at::kCPU);
  check(*ranks.world, device.device);
  if (ranks.topology.shard_size > 1) check(*ranks.gather, device.device);
  if (ranks.topology.expert_ranks > 1) check(*ranks.exchange, device.device);
  if (out.empty()) {
    // Groups of shards have numbers in their names, which the ranks differ in.
    out.push_back(
        passed("links", cat("right sums, gathers and exchanges in ", names.size(), " groups")));
  }
  return out;
}

double measure_link(Ranks& ranks, const DeviceSetup& device) {
  constexpr int kRounds = 3;
  const bool cuda = device.device.is_cuda();
  const int64_t bytes = cuda ? int64_t{64} << 20 : int64_t{4} << 20;
  const int n = ranks.size(), next = (ranks.rank() + 1) % n, before = (ranks.rank() + n - 1) % n;
  const at::Tensor out = at::zeros({bytes / 4}, at::TensorOptions(device.device).dtype(at::kFloat));
  const at::Tensor in = at::zeros_like(out);
  std::vector<int64_t> out_rows(static_cast<size_t>(n)), in_rows(static_cast<size_t>(n));
  out_rows[static_cast<size_t>(before)] = in_rows[static_cast<size_t>(next)] = bytes / 4;
  double best = 0;
  for (int round = 0; round <= kRounds; ++round) {  // the first one connects
    ranks.control->barrier("before the link is measured");
    const Timer timer;
    ranks.world->all_to_all(out, in, out_rows, in_rows, "measuring the link").wait();
    out[0].item<float>();  // the device is done
    if (round > 0) best = std::max(best, double(bytes) / timer.seconds() / 1e9);
  }
  return best;
}

LinkExpectation expected_link(const DeviceSetup& device, int nodes, double wanted) {
  const bool cuda = device.device.is_cuda();
  const char* of = cuda ? (nodes > 1 ? "GPUs of several hosts" : "GPUs of one host")
                        : (nodes > 1 ? "CPUs of several hosts" : "CPUs of one host");
  const double usual = cuda ? (nodes > 1 ? 5 : 15) : (nodes > 1 ? 0.1 : 0.02);
  return {wanted > 0 ? wanted : usual, of};
}

Finding check_link_rates(const std::vector<double>& rates, const LinkExpectation& expected) {
  const auto slowest = std::min_element(rates.begin(), rates.end());
  const auto fastest = std::max_element(rates.begin(), rates.end());
  const std::string text = cat(strf("%.3g", *slowest), " to ", strf("%.3g", *fastest),
                               " GB/s from rank to rank (", expected.of, ", expected ",
                               expected.gb_per_s, "); slowest: rank ", slowest - rates.begin());
  if (*slowest >= expected.gb_per_s) return passed("links", text);
  return warned("links", text,
                "the slowest rank and its neighbours share the bad link: look at nvidia-smi topo "
                "-m, the fabric's counters and NCCL_SOCKET_IFNAME");
}

}  // namespace mgm
