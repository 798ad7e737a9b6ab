#include "checkpoint/compare.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

namespace mgm {
namespace {

constexpr int64_t kPiece = 1 << 20;  // elements of each side in memory

// Elements [first, first + out.size()) in order.
void read_piece(const TrainCheckpoint& checkpoint, const std::string& kind,
                const std::string& parameter, int64_t first, std::vector<float>& out) {
  checkpoint.read(kind, parameter, first, static_cast<int64_t>(out.size()),
                  [&](int64_t at, const at::Tensor& values) {
                    std::memcpy(out.data() + (at - first), values.const_data_ptr(),
                                values.nbytes());
                  });
}

TensorDifference compare(const TrainCheckpoint& a, const TrainCheckpoint& b,
                         const std::string& kind, const std::string& parameter, int64_t numel) {
  TensorDifference out;
  double squares = 0, of_difference = 0;
  std::vector<float> x, y;
  for (int64_t first = 0; first < numel; first += kPiece) {
    const auto count = static_cast<size_t>(std::min(kPiece, numel - first));
    x.resize(count);
    y.resize(count);
    read_piece(a, kind, parameter, first, x);
    read_piece(b, kind, parameter, first, y);
    out.equal = out.equal && std::memcmp(x.data(), y.data(), count * sizeof(float)) == 0;
    for (size_t i = 0; i < count; ++i) {
      const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
      squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      of_difference += difference * difference;
      if (!std::isnan(out.max_abs) && !(std::abs(difference) <= out.max_abs))
        out.max_abs = std::abs(difference);
    }
  }
  if (out.equal) return {};  // NaN and infinity may be equal too
  out.relative_l2 = of_difference == 0 ? 0 : std::sqrt(of_difference) / std::sqrt(squares);
  return out;
}

std::vector<std::string> names_of(const TrainCheckpoint& checkpoint) {
  std::vector<std::string> out;
  for (const StateGroup& group : checkpoint.layout().groups) {
    for (const StateSegment& s : group.segments) out.push_back(s.name);
  }
  std::sort(out.begin(), out.end());
  return out;
}

bool both_have(const TrainCheckpoint& a, const TrainCheckpoint& b, const std::string& name) {
  return a.contains(name) && b.contains(name) &&
         a.place(name).segment->shape == b.place(name).segment->shape;
}

}  // namespace

bool ParameterDifference::equal() const {
  return std::all_of(of.begin(), of.end(), [](const TensorDifference& d) { return d.equal; });
}

CheckpointDifference compare_checkpoints(const TrainCheckpoint& a, const TrainCheckpoint& b) {
  CheckpointDifference out;
  for (const std::string& name : names_of(b)) {
    if (!both_have(a, b, name)) out.only_b.push_back(name);
  }
  for (const std::string& name : names_of(a)) {
    if (!both_have(a, b, name)) {
      out.only_a.push_back(name);
      continue;
    }
    ParameterDifference parameter;
    parameter.name = name;
    for (size_t k = 0; k < std::size(kStateKinds); ++k)
      parameter.of[k] = compare(a, b, kStateKinds[k], name, a.place(name).segment->numel);
    if (parameter.equal()) {
      ++out.equal_parameters;
    } else {
      out.parameters.push_back(std::move(parameter));
    }
  }
  const auto &frozen_a = a.manifest().frozen, &frozen_b = b.manifest().frozen;
  std::set<std::string> groups;
  for (const auto& [group, hash] : frozen_a) groups.insert(group);
  for (const auto& [group, hash] : frozen_b) groups.insert(group);
  for (const std::string& group : groups) {
    const auto x = frozen_a.find(group), y = frozen_b.find(group);
    if (x == frozen_a.end() || y == frozen_b.end() || x->second != y->second)
      out.frozen.push_back(group);
  }
  return out;
}

}  // namespace mgm
