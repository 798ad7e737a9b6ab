// What `mgm train --plan` prints of the modes on given machines: a text for reading, JSON for
// programs, a row of a Markdown table for documents.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "train/plan/modes.h"

namespace mgm {

std::string plan_text(const PlannedModel& model, const ClusterPlan& plan);
OrderedJson plan_json(const PlannedModel& model, const ClusterPlan& plan);
// One row per plan, a heading before them: the cheapest mode that fits.
std::string plan_markdown(const std::vector<ClusterPlan>& plans);

}  // namespace mgm
