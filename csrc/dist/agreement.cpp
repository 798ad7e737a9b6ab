#include "dist/agreement.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace mgm {
namespace {

[[noreturn]] void throw_typed(ExitCode code, const std::string& message) {
  switch (code) {
    case ExitCode::kConfig:
      throw ConfigError(message);
    case ExitCode::kData:
      throw DataError(message);
    case ExitCode::kCheckpoint:
      throw CheckpointError(message);
    case ExitCode::kDist:
      throw DistError(message);
    case ExitCode::kNonFinite:
      throw NonFiniteError(message);
    default:
      throw InternalError(message);
  }
}

}  // namespace

std::vector<std::string> gather_texts(Ranks& ranks, const std::string& mine,
                                      const std::string& label) {
  if (ranks.size() == 1) return {mine};
  const at::Tensor sizes = at::empty({ranks.size()}, at::kLong);
  ranks.control
      ->all_gather(sizes, at::full({1}, static_cast<int64_t>(mine.size()), at::kLong), label)
      .wait();
  const auto longest = sizes.max().item<int64_t>();
  std::vector<std::string> out(static_cast<size_t>(ranks.size()));
  if (longest == 0) return out;
  const at::Tensor padded = at::zeros({longest}, at::kByte);
  std::memcpy(padded.data_ptr(), mine.data(), mine.size());
  const at::Tensor all = at::empty({ranks.size() * longest}, at::kByte);
  ranks.control->all_gather(all, padded, label).wait();
  const char* bytes = static_cast<const char*>(all.const_data_ptr());
  for (size_t rank = 0; rank < out.size(); ++rank) {
    out[rank].assign(bytes + rank * static_cast<size_t>(longest),
                     static_cast<size_t>(sizes[static_cast<int64_t>(rank)].item<int64_t>()));
  }
  return out;
}

void together(Ranks& ranks, const std::string& label, const std::function<void()>& act) {
  std::string failure;  // "<exit code> <message>"
  try {
    act();
  } catch (const Error& e) {
    failure = cat(static_cast<int>(e.code()), " ", e.what());
  } catch (const std::exception& e) {
    failure = cat(static_cast<int>(ExitCode::kInternal), " ", e.what());
  }
  for (const std::string& text : gather_texts(ranks, failure, label)) {
    if (text.empty()) continue;
    const size_t space = text.find(' ');
    throw_typed(static_cast<ExitCode>(std::stoi(text.substr(0, space))), text.substr(space + 1));
  }
}

}  // namespace mgm
