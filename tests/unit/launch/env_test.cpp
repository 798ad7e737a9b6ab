// Every launcher's variables, complete, incomplete, malformed and against each other.
#include "launch/env.h"

#include <gtest/gtest.h>

#include <map>

#include "base/error.h"

namespace mgm {
namespace {

using Vars = std::map<std::string, std::string>;

LaunchEnv read(const Vars& vars) {
  return read_launch_env([&](const std::string& name) -> std::optional<std::string> {
    const auto found = vars.find(name);
    return found == vars.end() ? std::nullopt : std::optional<std::string>(found->second);
  });
}

Vars with(Vars vars, const Vars& more) {
  for (const auto& [name, value] : more) vars[name] = value;
  return vars;
}
Vars without(Vars vars, const std::string& name) {
  vars.erase(name);
  return vars;
}

// The error of these variables must contain every one of the texts.
void expect_error(const Vars& vars, const std::vector<std::string>& texts) {
  try {
    const LaunchEnv env = read(vars);
    FAIL() << "no error, rank " << env.rank << " of " << env.world << " by " << env.launcher;
  } catch (const DistError& e) {
    for (const std::string& text : texts) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what() << "\n" << text;
    }
  }
}

void expect_place(const LaunchEnv& env, int rank, int world, int local_rank, int local_world,
                  int node, int nodes) {
  EXPECT_EQ(env.rank, rank);
  EXPECT_EQ(env.world, world);
  EXPECT_EQ(env.local_rank, local_rank);
  EXPECT_EQ(env.local_world, local_world);
  EXPECT_EQ(env.node, node);
  EXPECT_EQ(env.nodes, nodes);
}

TEST(LaunchEnv, NothingIsOneRank) {
  const LaunchEnv env = read({});
  EXPECT_EQ(env.launcher, "none");
  expect_place(env, 0, 1, 0, 1, 0, 1);
  EXPECT_EQ(env.master_host, "127.0.0.1");
  EXPECT_FALSE(env.store_is_served);
  EXPECT_EQ(env.restart, 0);
  EXPECT_EQ(env.note, "");
  // What other programs leave behind.
  expect_place(read({{"MASTER_ADDR", "x"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}}), 0, 1, 0, 1,
               0, 1);
  expect_place(read({{"RANK", ""}, {"WORLD_SIZE", " "}, {"SLURM_PROCID", ""}}), 0, 1, 0, 1, 0, 1);
}

TEST(LaunchEnv, OfThisProcess) {
  ::setenv("RANK", "1", 1);
  ::setenv("WORLD_SIZE", "2", 1);
  ::unsetenv("LOCAL_RANK");
  ::unsetenv("TORCHELASTIC_RUN_ID");
  EXPECT_THROW(read_launch_env(), DistError);
  ::unsetenv("RANK");
  ::unsetenv("WORLD_SIZE");
  EXPECT_EQ(read_launch_env().world, 1);
}

// ---- torchrun
// -------------------------------------------------------------------------------------

const Vars kTorchrun = {{"RANK", "5"},
                        {"WORLD_SIZE", "8"},
                        {"LOCAL_RANK", "1"},
                        {"LOCAL_WORLD_SIZE", "4"},
                        {"GROUP_RANK", "1"},
                        {"GROUP_WORLD_SIZE", "2"},
                        {"MASTER_ADDR", "gpu1"},
                        {"MASTER_PORT", "29512"},
                        {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                        {"TORCHELASTIC_RESTART_COUNT", "2"},
                        {"TORCHELASTIC_RUN_ID", "abc"}};

TEST(LaunchEnv, Torchrun) {
  const LaunchEnv env = read(kTorchrun);
  EXPECT_EQ(env.launcher, "torchrun");
  expect_place(env, 5, 8, 1, 4, 1, 2);
  EXPECT_EQ(env.master_host, "gpu1");
  EXPECT_EQ(env.master_port, 29512);
  EXPECT_TRUE(env.store_is_served);
  EXPECT_EQ(env.restart, 2);
  EXPECT_EQ(env.job, "abc");
  EXPECT_EQ(read(with(kTorchrun, {{"MGM_LAUNCH", "1"}})).launcher, "mgm launch");
}

TEST(LaunchEnv, TorchrunStoreIsServedOnlyWhenItSaysSo) {
  for (const char* word : {"False", "false", "0", ""}) {
    EXPECT_FALSE(read(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", word}})).store_is_served);
  }
  EXPECT_FALSE(read(without(kTorchrun, "TORCHELASTIC_USE_AGENT_STORE")).store_is_served);
  EXPECT_TRUE(read(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "1"}})).store_is_served);
  expect_error(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "maybe"}}),
               {"TORCHELASTIC_USE_AGENT_STORE", "maybe"});
}

TEST(LaunchEnv, TorchrunGroupsCanBeDerived) {
  const Vars vars = without(without(kTorchrun, "GROUP_RANK"), "GROUP_WORLD_SIZE");
  expect_place(read(vars), 5, 8, 1, 4, 1, 2);
  // Unequal hosts cannot.
  expect_error(with(vars, {{"WORLD_SIZE", "7"}}),
               {"rank 5 of 7", "LOCAL_WORLD_SIZE 4", "GROUP_RANK"});
  expect_error(with(vars, {{"RANK", "6"}}), {"rank 6 of 8", "LOCAL_RANK 1"});
  // With the groups they can be told.
  expect_place(read(with(kTorchrun, {{"WORLD_SIZE", "7"}})), 5, 7, 1, 4, 1, 2);
}

TEST(LaunchEnv, TorchrunOneRankNeedsLittle) {
  expect_place(read({{"RANK", "0"}, {"WORLD_SIZE", "1"}}), 0, 1, 0, 1, 0, 1);
  expect_place(read({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}}), 0, 1, 0, 1, 0, 1);
}

TEST(LaunchEnv, TorchrunMissing) {
  for (const char* name : {"WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"}) {
    expect_error(without(kTorchrun, name), {name, "is not set"});
    expect_error(with(kTorchrun, {{name, ""}}), {name, "is not set"});
  }
  expect_error(without(kTorchrun, "RANK"), {"RANK is not set"});
  expect_error({{"WORLD_SIZE", "8"}}, {"WORLD_SIZE is 8 but RANK is not set"});
  expect_error({{"LOCAL_RANK", "3"}}, {"LOCAL_RANK is 3 but RANK is not set"});
  expect_error({{"RANK", "0"}}, {"WORLD_SIZE is not set"});
  expect_error({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}},
               {"LOCAL_RANK is not set", "GPU"});
}

TEST(LaunchEnv, TorchrunMalformedOrOutOfRange) {
  for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
                           "GROUP_WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"}) {
    for (const char* value : {"x", "-1", "1.5", "1 2", "0x1", "99999999999999999999"}) {
      expect_error(with(kTorchrun, {{name, value}}), {cat(name, " is '", value, "'")});
    }
  }
  expect_error(with(kTorchrun, {{"RANK", "8"}}), {"RANK is 8", "WORLD_SIZE is 8"});
  expect_error(with(kTorchrun, {{"WORLD_SIZE", "0"}}), {"WORLD_SIZE is 0"});
  expect_error(with(kTorchrun, {{"LOCAL_RANK", "4"}}),
               {"LOCAL_RANK is 4", "LOCAL_WORLD_SIZE is 4"});
  expect_error(with(kTorchrun, {{"GROUP_RANK", "2"}}),
               {"GROUP_RANK is 2", "GROUP_WORLD_SIZE is 2"});
  expect_error(with(kTorchrun, {{"LOCAL_WORLD_SIZE", "9"}}),
               {"WORLD_SIZE is 8", "LOCAL_WORLD_SIZE is 9"});
  expect_error(with(kTorchrun, {{"GROUP_RANK", "0"}, {"GROUP_WORLD_SIZE", "1"}}),
               {"WORLD_SIZE is 8", "GROUP_WORLD_SIZE 1"});
  expect_error(with(kTorchrun, {{"MASTER_PORT", "0"}}), {"MASTER_PORT is 0"});
  expect_error(with(kTorchrun, {{"MASTER_PORT", "65536"}}), {"MASTER_PORT is 65536"});
}

// ---- SLURM
// ----------------------------------------------------------------------------------------

// Task 5 of "srun -n 11" on nodes of 4, 4 and 3.
const Vars kSlurm = {{"SLURM_JOB_ID", "4711"},
                     {"SLURM_STEP_ID", "0"},
                     {"SLURM_STEPID", "0"},
                     {"SLURM_PROCID", "5"},
                     {"SLURM_LOCALID", "1"},
                     {"SLURM_NODEID", "1"},
                     {"SLURM_NNODES", "3"},
                     {"SLURM_STEP_NUM_NODES", "3"},
                     {"SLURM_NTASKS", "11"},
                     {"SLURM_STEP_NUM_TASKS", "11"},
                     {"SLURM_TASKS_PER_NODE", "4(x2),3"},
                     {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"},
                     {"SLURM_JOB_NODELIST", "gpu[01-03]"},
                     {"SLURM_STEP_NODELIST", "gpu[01-03]"}};

TEST(LaunchEnv, Slurm) {
  const LaunchEnv env = read(kSlurm);
  EXPECT_EQ(env.launcher, "slurm");
  expect_place(env, 5, 11, 1, 4, 1, 3);
  EXPECT_EQ(env.master_host, "gpu01");
  EXPECT_EQ(env.master_port, 15000 + 4711);
  EXPECT_EQ(env.job, "4711.0");
  EXPECT_FALSE(env.store_is_served);
  const LaunchEnv last =
      read(with(kSlurm, {{"SLURM_PROCID", "10"}, {"SLURM_LOCALID", "2"}, {"SLURM_NODEID", "2"}}));
  expect_place(last, 10, 11, 2, 3, 2, 3);
  EXPECT_EQ(last.master_host, env.master_host);
  EXPECT_EQ(last.master_port, env.master_port);
}

TEST(LaunchEnv, SlurmStepGoesBeforeJob) {
  // Two tasks of a job of eleven: "srun -n 2 -N 2".
  const Vars vars = with(kSlurm, {{"SLURM_STEP_NUM_TASKS", "2"},
                                  {"SLURM_STEP_NUM_NODES", "2"},
                                  {"SLURM_STEP_TASKS_PER_NODE", "1(x2)"},
                                  {"SLURM_STEP_NODELIST", "gpu[02-03]"},
                                  {"SLURM_PROCID", "1"},
                                  {"SLURM_LOCALID", "0"},
                                  {"SLURM_STEP_ID", "3"}});
  const LaunchEnv env = read(vars);
  expect_place(env, 1, 2, 0, 1, 1, 2);
  EXPECT_EQ(env.master_host, "gpu02");
  EXPECT_EQ(env.job, "4711.3");
  EXPECT_NE(env.master_port, read(kSlurm).master_port);  // steps may run side by side
}

TEST(LaunchEnv, SlurmOldNames) {
  Vars vars = kSlurm;
  for (const char* name : {"SLURM_STEP_ID", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS",
                           "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"}) {
    vars.erase(name);
  }
  expect_place(read(vars), 5, 11, 1, 4, 1, 3);
  vars["SLURM_NODELIST"] = "old[7-9]";
  vars.erase("SLURM_JOB_NODELIST");
  EXPECT_EQ(read(vars).master_host, "old7");
}

TEST(LaunchEnv, SlurmMasterCanBeGiven) {
  const LaunchEnv env = read(with(kSlurm, {{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "1234"}}));
  EXPECT_EQ(env.master_host, "10.0.0.1");
  EXPECT_EQ(env.master_port, 1234);
  EXPECT_EQ(read(with(kSlurm, {{"MASTER_PORT", "1234"}})).master_host, "gpu01");
  expect_error(with(kSlurm, {{"MASTER_PORT", "http"}}), {"MASTER_PORT", "http"});
}

TEST(LaunchEnv, SlurmOneNodeNeedsNoNodeList) {
  Vars vars = {{"SLURM_JOB_ID", "15001"},     {"SLURM_STEP_ID", "0"},
               {"SLURM_PROCID", "1"},         {"SLURM_LOCALID", "1"},
               {"SLURM_NODEID", "0"},         {"SLURM_NNODES", "1"},
               {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_STEP_TASKS_PER_NODE", "2"}};
  const LaunchEnv env = read(vars);
  expect_place(env, 1, 2, 1, 2, 0, 1);
  EXPECT_EQ(env.master_host, "127.0.0.1");
  EXPECT_EQ(env.master_port, 15001);
  EXPECT_EQ(read(with(vars, {{"SLURM_RESTART_COUNT", "3"}})).restart, 3);
  EXPECT_EQ(read(with(vars, {{"SLURM_RESTART_COUNT", "3"}})).requeues, 3);
}

TEST(LaunchEnv, SlurmWithoutSrunIsOneRank) {
  // What a batch script sees (SLURM 22.05), and what salloc's shell sees.
  const Vars batch = {{"SLURM_JOB_ID", "7"},
                      {"SLURM_PROCID", "0"},
                      {"SLURM_LOCALID", "0"},
                      {"SLURM_NODEID", "0"},
                      {"SLURM_NNODES", "2"},
                      {"SLURM_NTASKS", "8"},
                      {"SLURM_TASKS_PER_NODE", "4(x2)"}};
  const Vars shell = {{"SLURM_JOB_ID", "7"}, {"SLURM_NNODES", "2"}, {"SLURM_NTASKS", "8"}};
  // salloc's shell as a step of its own (LaunchParameters=use_interactive_step).
  const Vars interactive = with(batch, {{"SLURM_STEP_ID", "4294967290"}});
  for (const Vars& vars : {batch, shell, interactive}) {
    const LaunchEnv env = read(vars);
    EXPECT_EQ(env.launcher, "none");
    expect_place(env, 0, 1, 0, 1, 0, 1);
    EXPECT_EQ(env.job, "7");
    EXPECT_NE(env.note.find("SLURM_NTASKS is 8"), std::string::npos);
    EXPECT_NE(env.note.find("srun"), std::string::npos);
  }
  EXPECT_EQ(read(with(batch, {{"SLURM_NTASKS", "1"}})).note, "");
}

TEST(LaunchEnv, SlurmMissing) {
  for (const char* name : {"SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID"}) {
    expect_error(without(kSlurm, name), {cat(name, " is not set"), "SLURM_PROCID"});
  }
  const std::vector<std::vector<std::string>> alternatives = {
      {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"},
      {"SLURM_STEP_NUM_NODES", "SLURM_NNODES"},
      {"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"},
      {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"}};
  for (const auto& names : alternatives) {
    Vars vars = kSlurm;
    for (const std::string& name : names) vars.erase(name);
    expect_error(vars, {names[0] + " / " + names[1], "is not set"});
  }
}

TEST(LaunchEnv, SlurmMalformed) {
  for (const char* name : {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID",
                           "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_STEP_ID",
                           "SLURM_STEP_TASKS_PER_NODE", "SLURM_RESTART_COUNT"}) {
    expect_error(with(kSlurm, {{name, "many"}}), {cat(name, " is 'many'")});
  }
  expect_error(with(kSlurm, {{"SLURM_STEP_NODELIST", "gpu[01-"}}),
               {"SLURM_STEP_NODELIST is 'gpu[01-'"});
}

TEST(LaunchEnv, SlurmContradictions) {
  expect_error(with(kSlurm, {{"SLURM_PROCID", "11"}}),
               {"SLURM_PROCID is 11", "SLURM_STEP_NUM_TASKS is 11"});
  expect_error(with(kSlurm, {{"SLURM_NODEID", "3"}}),
               {"SLURM_NODEID is 3", "SLURM_STEP_NUM_NODES is 3"});
  expect_error(with(kSlurm, {{"SLURM_LOCALID", "4"}}),
               {"SLURM_LOCALID is 4", "SLURM_STEP_TASKS_PER_NODE"});
  expect_error(with(kSlurm, {{"SLURM_STEP_TASKS_PER_NODE", "4(x2)"}}),
               {"8 tasks on 2 nodes", "11 tasks on 3 nodes"});
  expect_error(with(kSlurm, {{"SLURM_STEP_TASKS_PER_NODE", "4(x3)"}}), {"12 tasks on 3 nodes"});
  expect_error(with(kSlurm, {{"SLURM_STEP_NODELIST", "gpu[01-02]"}}),
               {"SLURM_STEP_NODELIST", "2 nodes"});
  // Numbered round robin over the nodes.
  expect_error(with(kSlurm, {{"SLURM_PROCID", "4"}}),
               {"SLURM_PROCID is 4", "--distribution=block"});
  // A batch script that exported one rank for all.
  expect_error(with(kSlurm, {{"RANK", "0"}}), {"RANK is 0", "SLURM_PROCID says 5"});
  expect_error(with(kSlurm, {{"WORLD_SIZE", "8"}}),
               {"WORLD_SIZE is 8", "SLURM_STEP_NUM_TASKS says 11"});
  expect_place(read(with(kSlurm, {{"RANK", "5"}, {"WORLD_SIZE", "11"}})), 5, 11, 1, 4, 1, 3);
  expect_error(with(kSlurm, with(without(kTorchrun, "TORCHELASTIC_RUN_ID"),
                                 {{"RANK", "4"}, {"LOCAL_RANK", "0"}})),
               {"RANK is 4", "SLURM_PROCID says 5"});
}

TEST(LaunchEnv, TorchrunUnderSrun) {
  const LaunchEnv env = read(with(kSlurm, kTorchrun));
  EXPECT_EQ(env.launcher, "torchrun");
  expect_place(env, 5, 8, 1, 4, 1, 2);
  EXPECT_EQ(read(with(kSlurm, with(kTorchrun, {{"RANK", "4"}, {"LOCAL_RANK", "0"}}))).rank, 4);
}

// ---- Open MPI
// -------------------------------------------------------------------------------------

const Vars kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "3"},       {"OMPI_COMM_WORLD_SIZE", "4"},
                       {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                       {"PMIX_NAMESPACE", "1859452929"},    {"MASTER_ADDR", "gpu1"}};

TEST(LaunchEnv, OpenMpi) {
  const LaunchEnv env = read(kOpenMpi);
  EXPECT_EQ(env.launcher, "openmpi");
  expect_place(env, 3, 4, 1, 2, 1, 2);
  EXPECT_EQ(env.master_host, "gpu1");
  EXPECT_GE(env.master_port, 15000);
  EXPECT_LT(env.master_port, 30000);
  EXPECT_EQ(env.job, "1859452929");
  const Vars first =
      with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}});
  EXPECT_EQ(read(first).master_port, env.master_port);
  EXPECT_NE(read(with(first, {{"PMIX_NAMESPACE", "1859452930"}})).master_port, env.master_port);
  EXPECT_EQ(read(without(kOpenMpi, "PMIX_NAMESPACE")).master_port, 29500);
  EXPECT_EQ(read(with(kOpenMpi, {{"MASTER_PORT", "1234"}})).master_port, 1234);
}

TEST(LaunchEnv, OpenMpiOneHostNeedsNoMaster) {
  const LaunchEnv env =
      read(with(without(kOpenMpi, "MASTER_ADDR"),
                {{"OMPI_COMM_WORLD_LOCAL_RANK", "3"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}}));
  expect_place(env, 3, 4, 3, 4, 0, 1);
  EXPECT_EQ(env.master_host, "127.0.0.1");
}

TEST(LaunchEnv, OpenMpiBeforeSlurmWhoseStepOnlyHoldsItsDaemons) {
  const LaunchEnv env = read(with(kSlurm, kOpenMpi));
  EXPECT_EQ(env.launcher, "openmpi");
  EXPECT_EQ(env.rank, 3);
}

TEST(LaunchEnv, OpenMpiErrors) {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                           "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"}) {
    expect_error(without(kOpenMpi, name), {cat(name, " is not set")});
    expect_error(with(kOpenMpi, {{name, "x"}}), {cat(name, " is 'x'")});
  }
  expect_error(without(kOpenMpi, "MASTER_ADDR"), {"MASTER_ADDR is not set", "2 hosts"});
  expect_error(with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "4"}}), {"OMPI_COMM_WORLD_RANK is 4"});
  expect_error(with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_RANK", "2"}}),
               {"OMPI_COMM_WORLD_LOCAL_RANK is 2"});
  expect_error(with(kOpenMpi, {{"OMPI_COMM_WORLD_SIZE", "5"}}),
               {"--map-by slot"});  // unequal hosts
  expect_error(with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "2"}}), {"rank 2 of 4", "--map-by slot"});
  expect_error(with(kOpenMpi, {{"WORLD_SIZE", "8"}}),
               {"WORLD_SIZE is 8", "OMPI_COMM_WORLD_SIZE says 4"});
  expect_error(with(kOpenMpi, {{"RANK", "0"}}), {"RANK is 0", "OMPI_COMM_WORLD_RANK says 3"});
}

// ---- Kubernetes
// -----------------------------------------------------------------------------------

const Vars kPyTorchJob = {{"KUBERNETES_SERVICE_HOST", "10.96.0.1"},
                          {"MASTER_ADDR", "mgm-master-0"},
                          {"MASTER_PORT", "23456"},
                          {"WORLD_SIZE", "2"},
                          {"RANK", "1"},
                          {"PET_NPROC_PER_NODE", "auto"}};

TEST(LaunchEnv, PyTorchJobOneRankPerPod) {
  const LaunchEnv env = read(kPyTorchJob);
  EXPECT_EQ(env.launcher, "kubernetes");
  expect_place(env, 1, 2, 0, 1, 1, 2);
  EXPECT_EQ(env.master_host, "mgm-master-0");
  EXPECT_EQ(env.master_port, 23456);
  EXPECT_EQ(read(with(kPyTorchJob, {{"PET_NPROC_PER_NODE", "1"}})).rank, 1);
  // With a launcher in the pod.
  EXPECT_EQ(read(with(kPyTorchJob, kTorchrun)).launcher, "torchrun");
}

TEST(LaunchEnv, PyTorchJobErrors) {
  expect_error(without(kPyTorchJob, "MASTER_ADDR"), {"MASTER_ADDR is not set"});
  expect_error(without(kPyTorchJob, "WORLD_SIZE"), {"WORLD_SIZE is not set"});
  expect_error(without(kPyTorchJob, "RANK"), {"RANK is not set"});
  expect_error(with(kPyTorchJob, {{"RANK", "2"}}), {"RANK is 2", "WORLD_SIZE is 2"});
  expect_error(with(kPyTorchJob, {{"MASTER_PORT", "x"}}), {"MASTER_PORT is 'x'"});
  expect_error(with(kPyTorchJob, {{"PET_NPROC_PER_NODE", "8"}, {"WORLD_SIZE", "16"}}),
               {"PET_NPROC_PER_NODE is 8", "LOCAL_RANK", "mgm launch"});
}

TEST(LaunchEnv, IndexedJob) {
  const Vars vars = {
      {"JOB_COMPLETION_INDEX", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "mgm-0.mgm"}};
  const LaunchEnv env = read(vars);
  EXPECT_EQ(env.launcher, "kubernetes");
  expect_place(env, 1, 2, 0, 1, 1, 2);
  EXPECT_EQ(env.master_host, "mgm-0.mgm");
  EXPECT_EQ(env.master_port, 29500);
  // Every pod a run of its own.
  expect_place(read({{"JOB_COMPLETION_INDEX", "7"}, {"WORLD_SIZE", "1"}}), 0, 1, 0, 1, 0, 1);

  expect_error(without(vars, "WORLD_SIZE"), {"WORLD_SIZE is not set", "JOB_COMPLETION_INDEX"});
  expect_error(without(vars, "MASTER_ADDR"), {"MASTER_ADDR is not set"});
  expect_error(with(vars, {{"JOB_COMPLETION_INDEX", "2"}}),
               {"JOB_COMPLETION_INDEX is 2", "WORLD_SIZE is 2"});
  expect_error(with(vars, {{"JOB_COMPLETION_INDEX", "x"}}), {"JOB_COMPLETION_INDEX is 'x'"});
}

}  // namespace
}  // namespace mgm
