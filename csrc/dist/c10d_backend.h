// Inner header of dist: the ProcessGroup over any c10d::Backend.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "dist/c10d_group.h"

namespace mgm {

class C10dGroup : public ProcessGroup {
 public:
  C10dGroup(const GroupSettings& settings, std::shared_ptr<Store> store,
            c10::intrusive_ptr<c10d::Backend> backend)
      : ProcessGroup(settings.place.name, settings.place.rank, settings.place.size, settings.log),
        store_(std::move(store)),
        backend_(std::move(backend)) {}
  ~C10dGroup() override { shutdown(); }

  void shutdown() override {
    if (backend_) backend_->shutdown();
    backend_.reset();
  }
  void abort() override {
    if (backend_) backend_->abort();
    backend_.reset();
  }

 protected:
  Pending do_all_reduce_sum(at::Tensor& tensor) override {
    std::vector<at::Tensor> tensors{tensor};
    return pending(backend_->allreduce(tensors), {tensor});
  }
  Pending do_all_gather(at::Tensor& out, at::Tensor& in) override {
    return pending(backend_->_allgather_base(out, in), {out, in});
  }
  Pending do_reduce_scatter_sum(at::Tensor& out, at::Tensor& in) override {
    return pending(backend_->_reduce_scatter_base(out, in), {out, in});
  }
  Pending do_all_to_all(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& out_rows,
                        std::vector<int64_t>& in_rows) override {
    return pending(backend_->alltoall_base(out, in, out_rows, in_rows), {out, in});
  }
  Pending do_broadcast(at::Tensor& tensor, int root) override {
    std::vector<at::Tensor> tensors{tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return pending(backend_->broadcast(tensors, options), {tensor});
  }
  void do_barrier() override { backend_->barrier()->wait(); }

 private:
  static Pending pending(c10::intrusive_ptr<c10d::Work> work, std::vector<at::Tensor> alive) {
    return Pending([work = std::move(work), alive = std::move(alive)] { work->wait(); });
  }

  std::shared_ptr<Store> store_;  // its server must outlive the backend
  c10::intrusive_ptr<c10d::Backend> backend_;
};

}  // namespace mgm
