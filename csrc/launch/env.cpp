#include "launch/env.h"

#include <charconv>
#include <cstdlib>
#include <numeric>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/strings.h"
#include "launch/slurm_lists.h"

namespace mgm {
namespace {

constexpr int kDefaultPort = 29500;

// The variables that are set to something.
class Variables {
 public:
  explicit Variables(const EnvLookup& lookup) : lookup_(lookup) {}

  std::optional<std::string> text(const std::string& name) const {
    const std::optional<std::string> value = lookup_(name);
    if (!value) return std::nullopt;
    const std::string_view trimmed = trim(*value);
    return trimmed.empty() ? std::nullopt : std::optional<std::string>(trimmed);
  }
  bool has(const std::string& name) const { return text(name).has_value(); }

  std::optional<int> number(const std::string& name) const {
    const std::optional<std::string> value = text(name);
    if (!value) return std::nullopt;
    int out = 0;
    const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), out);
    if (error != std::errc() || end != value->data() + value->size() || out < 0) {
      throw DistError(name, " is '", *value, "'; a whole number from 0 to 2147483647 was expected");
    }
    return out;
  }

  // `because` says which variable made this one necessary.
  int required(const std::string& name, const std::string& because) const {
    const std::optional<int> value = number(name);
    if (!value) throw DistError(name, " is not set, although ", because);
    return *value;
  }

  // The first of several names for one thing: "" when none is set.
  std::string first_set(const std::vector<std::string>& names) const {
    for (const std::string& name : names) {
      if (has(name)) return name;
    }
    return "";
  }
  std::string required_one_of(const std::vector<std::string>& names,
                              const std::string& because) const {
    const std::string name = first_set(names);
    if (name.empty()) throw DistError(join(names, " / "), " is not set, although ", because);
    return name;
  }

 private:
  const EnvLookup& lookup_;
};

void check_below(const std::string& name, int value, const std::string& limit_name, int limit) {
  if (limit < 1) throw DistError(limit_name, " is ", limit, "; it must be 1 or more");
  if (value >= limit) {
    throw DistError(name, " is ", value, " but ", limit_name, " is ", limit,
                    "; ranks count from 0");
  }
}

// Ports below the range that Linux draws free ports from, so that they clash with nothing but
// another job of the same remainder.
int port_from(uint64_t id) { return 15000 + static_cast<int>(id % 15000); }

void read_port(const Variables& vars, LaunchEnv& env, int otherwise) {
  env.master_port = vars.number("MASTER_PORT").value_or(otherwise);
  if (env.master_port < 1 || env.master_port > 65535) {
    throw DistError("MASTER_PORT is ", env.master_port, "; a port lies between 1 and 65535");
  }
}

// MASTER_ADDR, without which ranks of several hosts cannot meet.
void read_master(const Variables& vars, LaunchEnv& env, int port_otherwise) {
  if (const auto host = vars.text("MASTER_ADDR")) {
    env.master_host = *host;
  } else if (env.nodes > 1) {
    throw DistError("MASTER_ADDR is not set, although ", env.launcher, " started ", env.world,
                    " ranks on ", env.nodes, " hosts; set it to the host of rank 0");
  }
  read_port(vars, env, port_otherwise);
}

// A variable of torchrun's names that the user set beside what the launcher says.
void check_agrees(const Variables& vars, const std::string& name, int value,
                  const std::string& other) {
  const std::optional<int> given = vars.number(name);
  if (given && *given != value) {
    throw DistError(name, " is ", *given, " but ", other, " says ", value, "; unset ", name,
                    " or correct it");
  }
}

// Node and number of nodes of ranks that every host has equally many of.
void place_on_equal_hosts(LaunchEnv& env, const std::string& local_rank_name,
                          const std::string& local_world_name, const std::string& advice) {
  if (env.world % env.local_world != 0 || env.rank % env.local_world != env.local_rank) {
    throw DistError("rank ", env.rank, " of ", env.world, " with ", local_rank_name, " ",
                    env.local_rank, " and ", local_world_name, " ", env.local_world,
                    ": ranks must be numbered host by host and every host must have as many; ",
                    advice);
  }
  env.nodes = env.world / env.local_world;
  env.node = env.rank / env.local_world;
}

// ---- SLURM
// ----------------------------------------------------------------------------------------

const std::vector<std::string> kStepIds = {"SLURM_STEP_ID", "SLURM_STEPID"};

// Started by srun: the shell of an allocation and a batch script have SLURM_PROCID too, but no
// step, or one of the reserved steps (interactive, batch, extern), which have the highest numbers.
bool is_slurm_task(const Variables& vars) {
  const std::string name = vars.first_set(kStepIds);
  if (name.empty() || !vars.has("SLURM_PROCID")) return false;
  const std::string id = *vars.text(name);
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), number);
  if (error != std::errc() || end != id.data() + id.size()) {
    throw DistError(name, " is '", id, "'; a whole number was expected");
  }
  return number < 0xfffffff0;
}

// Where this task's host comes among the job's, and that tasks are numbered host by host.
void place_on_slurm_nodes(const Variables& vars, const std::string& because, LaunchEnv& env) {
  const std::string nodes_name = vars.required_one_of(
      {"SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"}, because);
  env.nodes = *vars.number(nodes_name);
  env.node = vars.required("SLURM_NODEID", because);
  check_below("SLURM_NODEID", env.node, nodes_name, env.nodes);

  const std::string counts_name =
      vars.required_one_of({"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}, because);
  const std::string counts_text = *vars.text(counts_name);
  const std::vector<int> counts = expand_task_counts(counts_name, counts_text);
  const int total = std::accumulate(counts.begin(), counts.end(), 0);
  if (static_cast<int>(counts.size()) != env.nodes || total != env.world) {
    throw DistError(counts_name, " is '", counts_text, "', which is ", total, " tasks on ",
                    counts.size(), " nodes, but there are ", env.world, " tasks on ", env.nodes,
                    " nodes (", nodes_name, ")");
  }
  env.local_world = counts[env.node];
  check_below("SLURM_LOCALID", env.local_rank, counts_name + " of this node", env.local_world);
  const int before = std::accumulate(counts.begin(), counts.begin() + env.node, 0);
  if (before + env.local_rank != env.rank) {
    throw DistError("SLURM_PROCID is ", env.rank, " but task ", env.local_rank,
                    " (SLURM_LOCALID) of node ", env.node, " (SLURM_NODEID) would be rank ",
                    before + env.local_rank,
                    " if ranks were numbered host by host, as they must be; use srun "
                    "--distribution=block");
  }
}

LaunchEnv from_slurm(const Variables& vars) {
  LaunchEnv env;
  env.launcher = "slurm";
  const std::string because = "SLURM_PROCID is: this process is a task of srun";
  const std::string tasks_name =
      vars.required_one_of({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}, because);
  env.world = *vars.number(tasks_name);
  env.rank = vars.required("SLURM_PROCID", because);
  check_below("SLURM_PROCID", env.rank, tasks_name, env.world);
  env.local_rank = vars.required("SLURM_LOCALID", because);
  place_on_slurm_nodes(vars, because, env);

  const int job = vars.required("SLURM_JOB_ID", because);
  const int step = *vars.number(vars.first_set(kStepIds));
  env.job = cat(job, ".", step);
  env.restart = vars.number("SLURM_RESTART_COUNT").value_or(0);
  if (env.nodes > 1 && !vars.has("MASTER_ADDR")) {
    const std::string list_name =
        vars.required_one_of({"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"},
                             "there are several nodes and no MASTER_ADDR");
    const auto hosts = expand_node_list(list_name, *vars.text(list_name));
    if (static_cast<int>(hosts.size()) != env.nodes) {
      throw DistError(list_name, " is '", *vars.text(list_name), "', which is ", hosts.size(),
                      " nodes, but the step has ", env.nodes);
    }
    env.master_host = hosts.front();
    read_port(vars, env, port_from(job + 97ULL * step));
  } else {
    read_master(vars, env, port_from(job + 97ULL * step));
  }
  check_agrees(vars, "RANK", env.rank, "SLURM_PROCID");
  check_agrees(vars, "WORLD_SIZE", env.world, tasks_name);
  return env;
}

// ---- Open MPI
// -------------------------------------------------------------------------------------

LaunchEnv from_open_mpi(const Variables& vars) {
  LaunchEnv env;
  env.launcher = "openmpi";
  const std::string because = "mpirun started this process (OMPI_COMM_WORLD_RANK or _SIZE is set)";
  env.world = vars.required("OMPI_COMM_WORLD_SIZE", because);
  env.rank = vars.required("OMPI_COMM_WORLD_RANK", because);
  check_below("OMPI_COMM_WORLD_RANK", env.rank, "OMPI_COMM_WORLD_SIZE", env.world);
  env.local_world = vars.required("OMPI_COMM_WORLD_LOCAL_SIZE", because);
  env.local_rank = vars.required("OMPI_COMM_WORLD_LOCAL_RANK", because);
  check_below("OMPI_COMM_WORLD_LOCAL_RANK", env.local_rank, "OMPI_COMM_WORLD_LOCAL_SIZE",
              env.local_world);
  place_on_equal_hosts(env, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
                       "use mpirun --map-by slot with as many slots on every host");
  env.job = vars.text("PMIX_NAMESPACE").value_or("");  // one per mpirun
  read_master(vars, env, env.job.empty() ? kDefaultPort : port_from(hash64(env.job)));
  check_agrees(vars, "RANK", env.rank, "OMPI_COMM_WORLD_RANK");
  check_agrees(vars, "WORLD_SIZE", env.world, "OMPI_COMM_WORLD_SIZE");
  return env;
}

// ---- torchrun's variables
// -------------------------------------------------------------------------

void read_rank_and_world(const Variables& vars, LaunchEnv& env) {
  env.rank = vars.required("RANK", "LOCAL_RANK is");
  env.world = vars.required("WORLD_SIZE", "RANK is; one process alone needs neither");
  check_below("RANK", env.rank, "WORLD_SIZE", env.world);
}

void read_group(const Variables& vars, LaunchEnv& env) {
  if (!vars.has("GROUP_RANK") || !vars.has("GROUP_WORLD_SIZE")) {
    place_on_equal_hosts(env, "LOCAL_RANK", "LOCAL_WORLD_SIZE",
                         "else set GROUP_RANK and GROUP_WORLD_SIZE");
    return;
  }
  env.node = *vars.number("GROUP_RANK");
  env.nodes = *vars.number("GROUP_WORLD_SIZE");
  check_below("GROUP_RANK", env.node, "GROUP_WORLD_SIZE", env.nodes);
  if (env.world < env.local_world || (env.nodes == 1) != (env.world == env.local_world)) {
    throw DistError("WORLD_SIZE is ", env.world, " but LOCAL_WORLD_SIZE is ", env.local_world,
                    " with GROUP_WORLD_SIZE ", env.nodes);
  }
}

LaunchEnv from_torchrun(const Variables& vars) {
  LaunchEnv env;
  env.launcher = vars.has("MGM_LAUNCH") ? "mgm launch" : "torchrun";
  read_rank_and_world(vars, env);
  env.local_rank = vars.number("LOCAL_RANK").value_or(0);
  env.local_world = env.world == 1 ? vars.number("LOCAL_WORLD_SIZE").value_or(1)
                                   : vars.required("LOCAL_WORLD_SIZE", "RANK and LOCAL_RANK are");
  check_below("LOCAL_RANK", env.local_rank, "LOCAL_WORLD_SIZE", env.local_world);
  read_group(vars, env);
  if (env.world > 1) {
    for (const char* name : {"MASTER_ADDR", "MASTER_PORT"}) {
      if (!vars.has(name)) {
        throw DistError(name, " is not set, although RANK and WORLD_SIZE (", env.world,
                        ") are; ranks meet at MASTER_ADDR:MASTER_PORT");
      }
    }
  }
  read_master(vars, env, kDefaultPort);
  if (const auto served = vars.text("TORCHELASTIC_USE_AGENT_STORE")) {
    const std::string word = to_lower(*served);
    if (word != "true" && word != "false" && word != "1" && word != "0") {
      throw DistError("TORCHELASTIC_USE_AGENT_STORE is '", *served,
                      "'; True or False was expected");
    }
    env.store_is_served = word == "true" || word == "1";
  }
  env.restart = vars.number("TORCHELASTIC_RESTART_COUNT").value_or(0);
  env.job = vars.text("TORCHELASTIC_RUN_ID").value_or("");
  // A batch script that exports RANK once gives every task the same.
  if (!vars.has("TORCHELASTIC_RUN_ID") && is_slurm_task(vars)) {
    check_agrees(vars, "RANK", *vars.number("SLURM_PROCID"), "SLURM_PROCID");
  }
  return env;
}

// ---- Kubernetes
// -----------------------------------------------------------------------------------

// A PyTorchJob numbers its pods with RANK; each pod runs one process.
LaunchEnv from_pytorch_job(const Variables& vars) {
  LaunchEnv env;
  env.launcher = "kubernetes";
  const auto per_pod = vars.text("PET_NPROC_PER_NODE");  // a number, or "auto", "gpu", "cpu"
  if (per_pod && per_pod->find_first_not_of("0123456789") == std::string::npos && *per_pod != "1") {
    throw DistError("PET_NPROC_PER_NODE is ", *per_pod,
                    " but LOCAL_RANK is not set: this pod is to "
                    "run several ranks; start them with 'mgm launch --nproc ",
                    *per_pod, "' (docs/cluster.md)");
  }
  read_rank_and_world(vars, env);
  env.node = env.rank;
  env.nodes = env.world;
  read_master(vars, env, kDefaultPort);
  env.job = vars.text("TORCHELASTIC_RUN_ID").value_or("");
  return env;
}

LaunchEnv from_indexed_job(const Variables& vars) {
  LaunchEnv env;
  env.launcher = "kubernetes";
  const int index = *vars.number("JOB_COMPLETION_INDEX");
  env.world = vars.required("WORLD_SIZE",
                            "JOB_COMPLETION_INDEX is: set it to the Job's completions, or to 1 if "
                            "every pod is a run of its own");
  if (env.world != 1) {
    check_below("JOB_COMPLETION_INDEX", index, "WORLD_SIZE", env.world);
    env.rank = index;
  }
  env.node = env.rank;
  env.nodes = env.world;
  read_master(vars, env, kDefaultPort);
  return env;
}

LaunchEnv one_rank(const Variables& vars) {
  LaunchEnv env;
  for (const auto& [name, alone] : {std::pair("WORLD_SIZE", 1), std::pair("LOCAL_RANK", 0)}) {
    const int value = vars.number(name).value_or(alone);
    if (value != alone) {
      throw DistError(name, " is ", value,
                      " but RANK is not set; set both, or neither for one rank");
    }
  }
  if (!vars.has("SLURM_JOB_ID")) return env;
  env.job = *vars.text("SLURM_JOB_ID");
  env.restart = vars.number("SLURM_RESTART_COUNT").value_or(0);
  const int tasks = vars.number("SLURM_NTASKS").value_or(1);
  if (tasks > 1) {
    env.note = cat("SLURM_NTASKS is ", tasks,
                   " but srun did not start this process: it is one rank; "
                   "'srun mgm train ...' starts ",
                   tasks);
  }
  return env;
}

LaunchEnv from_whoever_started_this(const Variables& vars) {
  // Innermost first: torchrun may run under srun or mpirun, mpirun starts its daemons with srun.
  const bool has_rank = vars.has("RANK");
  if (has_rank && (vars.has("LOCAL_RANK") || vars.has("TORCHELASTIC_RUN_ID"))) {
    return from_torchrun(vars);
  }
  if (vars.has("OMPI_COMM_WORLD_RANK") || vars.has("OMPI_COMM_WORLD_SIZE")) {
    return from_open_mpi(vars);
  }
  if (is_slurm_task(vars)) return from_slurm(vars);
  if (has_rank && vars.has("KUBERNETES_SERVICE_HOST")) return from_pytorch_job(vars);
  if (has_rank) {
    if (vars.number("WORLD_SIZE").value_or(0) > 1) {
      throw DistError(
          "LOCAL_RANK is not set, although RANK and WORLD_SIZE are; it chooses the GPU");
    }
    return from_torchrun(vars);
  }
  if (vars.has("JOB_COMPLETION_INDEX")) return from_indexed_job(vars);
  return one_rank(vars);
}

}  // namespace

LaunchEnv read_launch_env(const EnvLookup& lookup) {
  const Variables vars(lookup);
  LaunchEnv env = from_whoever_started_this(vars);
  // A requeued batch script runs its launcher anew: that one counts from 0 and has another id.
  env.allocation = vars.text("SLURM_JOB_ID").value_or("");
  if (!env.allocation.empty()) env.requeues = vars.number("SLURM_RESTART_COUNT").value_or(0);
  return env;
}

LaunchEnv read_launch_env() {
  return read_launch_env([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  });
}

}  // namespace mgm
