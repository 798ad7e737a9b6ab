// Whether the groups of a run add up right and how fast bytes go between its ranks.
#pragma once

#include "dist/ranks.h"
#include "train/device.h"
#include "train/doctor/finding.h"

namespace mgm {

// Reductions and gathers of known values over the control and the device groups. Collective.
Findings check_reductions(Ranks& ranks, const DeviceSetup& device);

// GB/s at which this rank passes bytes to the next one and takes them from the one before.
// Collective; takes part of a second.
double measure_link(Ranks& ranks, const DeviceSetup& device);

struct LinkExpectation {
  double gb_per_s = 0;
  std::string of;  // "GPUs of one host"
};
// By device and number of hosts; `wanted` > 0 overrides the figure.
LinkExpectation expected_link(const DeviceSetup& device, int nodes, double wanted);

// `rates` of all ranks. Names the slowest rank where a rate is below the expectation.
Finding check_link_rates(const std::vector<double>& rates, const LinkExpectation& expected);

}  // namespace mgm
