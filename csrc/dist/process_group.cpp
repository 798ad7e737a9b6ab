#include "dist/process_group.h"

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include "base/error.h"

namespace mgm {
namespace {

class LocalGroup : public ProcessGroup {
 public:
  LocalGroup() : ProcessGroup("local", 0, 1, nullptr) {}

 protected:
  Pending do_all_reduce_sum(at::Tensor&) override { return {}; }
  Pending do_all_gather(at::Tensor& out, at::Tensor& in) override { return copy(out, in); }
  Pending do_reduce_scatter_sum(at::Tensor& out, at::Tensor& in) override { return copy(out, in); }
  Pending do_all_to_all(at::Tensor& out, at::Tensor& in, std::vector<int64_t>&,
                        std::vector<int64_t>&) override {
    return copy(out, in);
  }
  Pending do_broadcast(at::Tensor&, int) override { return {}; }
  void do_barrier() override {}

 private:
  static Pending copy(at::Tensor& out, const at::Tensor& in) {
    if (out.const_data_ptr() != in.const_data_ptr()) out.copy_(in);
    return {};
  }
};

}  // namespace

void Pending::wait() {
  if (!wait_) return;
  const auto wait = std::move(wait_);
  wait_ = nullptr;
  wait();
}

Pending ProcessGroup::logged(const char* operation, const std::string& label,
                             const at::Tensor& larger, const std::function<Pending()>& issue) {
  const int64_t sequence = sequence_++;
  uint64_t ticket = 0;
  if (log_) {
    CollectiveRecord record;
    record.sequence = sequence;
    record.group = name_;
    record.operation = operation;
    record.label = label;
    if (larger.defined()) {
      record.dtype = c10::toString(larger.scalar_type());
      record.numel = larger.numel();
      record.on_device = !larger.is_cpu();
    }
    ticket = log_->enter(std::move(record));
  }
  const std::string what = cat("rank ", rank_, " of ", size_, ": ", operation, " '", label,
                               "' (number ", sequence, " of group ", name_, ") failed: ");
  const auto guarded = [what](const auto& act) {
    try {
      return act();
    } catch (const c10::Error& e) {
      throw DistError(what, e.what_without_backtrace());
    } catch (const Error&) {
      throw;
    } catch (const std::exception& e) {  // Gloo throws its own types
      throw DistError(what, e.what());
    }
  };
  auto pending = std::make_shared<Pending>(guarded(issue));
  return Pending([pending, guarded, ticket, log = log_] {
    guarded([&] {
      pending->wait();
      return 0;
    });
    if (log) log->leave(ticket);
  });
}

Pending ProcessGroup::all_reduce_sum(at::Tensor tensor, const std::string& label) {
  return logged("all_reduce", label, tensor,
                [&, tensor]() mutable { return do_all_reduce_sum(tensor); });
}

Pending ProcessGroup::all_gather(at::Tensor out, at::Tensor in, const std::string& label) {
  MGM_CHECK(out.numel() == in.numel() * size_ && out.scalar_type() == in.scalar_type(), label,
            ": gathers ", in.numel(), " x ", size_, " into ", out.numel());
  return logged("all_gather", label, out, [&] { return do_all_gather(out, in); });
}

Pending ProcessGroup::reduce_scatter_sum(at::Tensor out, at::Tensor in, const std::string& label) {
  MGM_CHECK(in.numel() == out.numel() * size_ && out.scalar_type() == in.scalar_type(), label,
            ": scatters ", in.numel(), " to ", size_, " x ", out.numel());
  return logged("reduce_scatter", label, in, [&] { return do_reduce_scatter_sum(out, in); });
}

Pending ProcessGroup::all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                                 std::vector<int64_t> in_rows, const std::string& label) {
  return logged("all_to_all", label, in.numel() > out.numel() ? in : out,
                [&] { return do_all_to_all(out, in, out_rows, in_rows); });
}

Pending ProcessGroup::broadcast(at::Tensor tensor, int root, const std::string& label) {
  return logged("broadcast", label, tensor, [&] { return do_broadcast(tensor, root); });
}

void ProcessGroup::barrier(const std::string& label) {
  logged("barrier", label, {}, [&] {
    do_barrier();
    return Pending();
  }).wait();
}

std::unique_ptr<ProcessGroup> make_local_group() { return std::make_unique<LocalGroup>(); }

}  // namespace mgm
