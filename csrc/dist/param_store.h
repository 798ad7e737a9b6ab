// Storage of all parameters, in ParamGroups: one flat buffer per group (a decoder block, a tower
// part, ...) that the group's parameters share as independent leaves. What trains also has an fp32
// master copy (the flat buffer itself in fp32 runs) and an fp32 gradient that micro-batches add up
// in.
//
// Sharding cuts these flats across ranks without touching model code.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "types/param.h"

namespace mgm {

// A parameter's place in its group's flat buffer, in elements.
struct Segment {
  Param* param = nullptr;
  ParamPolicy policy;
  int64_t offset = 0;
  int64_t numel = 0;
};

struct ParamGroup {
  std::string name;
  std::vector<Segment> segments;  // what trains first
  int64_t trainable = 0;          // elements of `flat`, padding included, that train
  at::Tensor flat;                // compute dtype [padded]
  at::Tensor master;              // fp32 [trainable]; shares `flat` in fp32 runs
  at::Tensor grad;                // fp32 [trainable]
};

class ParamStore {
 public:
  // Allocates and binds every Param::value; policies[i] belongs to params[i]. With `gradients`,
  // what trains gets master, grad and requires_grad.
  ParamStore(const std::vector<Param*>& params, const std::vector<ParamPolicy>& policies,
             at::Device device, at::ScalarType dtype, bool gradients);
  ~ParamStore();
  ParamStore(const ParamStore&) = delete;
  ParamStore& operator=(const ParamStore&) = delete;

  std::vector<ParamGroup>& groups() { return groups_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }

  // Sets a parameter (and its master) from a tensor of any float dtype and device.
  void assign(const std::string& name, const at::Tensor& value);
  // fp32 value of a parameter: its master where it has one. On the store's device.
  at::Tensor value(const std::string& name) const;
  bool contains(const std::string& name) const { return index_.count(name) > 0; }

  void zero_grad();
  at::Device device() const { return device_; }
  at::ScalarType dtype() const { return dtype_; }

 private:
  struct Place {
    size_t group, segment;
  };
  void allocate(ParamGroup& group, bool gradients);

  at::Device device_;
  at::ScalarType dtype_;
  std::vector<ParamGroup> groups_;
  std::map<std::string, Place> index_;
};

}  // namespace mgm
