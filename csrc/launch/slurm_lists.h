// The short forms in which SLURM's variables list tasks and nodes (srun(1), "OUTPUT ENVIRONMENT
// VARIABLES"). A text that is not of that form is a DistError naming `variable`.
#pragma once

#include <string>
#include <vector>

namespace mgm {

// "4(x2),3" -> 4 4 3
std::vector<int> expand_task_counts(const std::string& variable, const std::string& text);

// "gpu[01-03,07]-ib,login1" -> gpu01-ib gpu02-ib gpu03-ib gpu07-ib login1; several brackets in a
// name count like digits, the last one fastest.
std::vector<std::string> expand_node_list(const std::string& variable, const std::string& text);

}  // namespace mgm
