#include "train/doctor/host_checks.h"

#include <algorithm>

#include "checkpoint/checkpoint_folder.h"

namespace mgm {
namespace {

constexpr double kTight = 0.9;                  // of what there is: a warning from here on
constexpr int64_t kForeign = int64_t{2} << 30;  // bytes on a GPU that are not a context's

std::string bytes(int64_t n) { return human_bytes(static_cast<double>(n)); }

void check_limits(const HostFacts& host, const Needs& needs, const RunConfig& config,
                  const LaunchEnv& env, Findings& out) {
  // Workers, sockets to other ranks in five groups, shards of weights, logs.
  const int64_t files = 256 + 8 * config.data.workers + 10 * int64_t{env.world};
  if (host.open_files >= 0 && host.open_files < files) {
    out.push_back(failed("host", ExitCode::kInternal,
                         cat("ulimit -n is ", host.open_files, "; ", env.world, " ranks and ",
                             config.data.workers, " workers may need ", files),
                         cat("ulimit -n ", std::max<int64_t>(files, 65536))));
  }
  if (needs.pinned > 0 && host.locked_memory >= 0 && host.locked_memory < needs.pinned) {
    out.push_back(warned("host",
                         cat("ulimit -l is ", bytes(host.locked_memory), "; ", bytes(needs.pinned),
                             " of pinned memory are wanted, and RDMA locks memory too"),
                         "ulimit -l unlimited (SLURM: PropagateResourceLimitsExcept=MEMLOCK)"));
  }
  const int64_t threads = std::max<int64_t>(1, config.data.workers) * env.local_world;
  if (threads > 2 * host.cores) {
    out.push_back(warned("host",
                         cat(config.data.workers, " data.workers x ", env.local_world,
                             " ranks = ", threads, " threads on ", host.cores, " cores"),
                         "ask for more cores (--cpus-per-task), or lower data.workers"));
  }
  if (config.train.threads * env.local_world > host.cores) {
    out.push_back(warned("host",
                         cat("train.threads ", config.train.threads, " x ", env.local_world,
                             " ranks on ", host.cores, " cores"),
                         "leave train.threads at 0: the cores are then shared out"));
  }
}

}  // namespace

Finding check_host_memory(const HostFacts& host, const Needs& needs, const LaunchEnv& env) {
  const int64_t wanted = needs.host() * env.local_world, unused = host.memory_free;
  const std::string have =
      unused < host.memory_available
          ? cat(bytes(unused),
                " are left below the limit of this process's cgroup (the machine has ",
                bytes(host.memory_available), " free of ", bytes(host.memory_total), ")")
          : cat(bytes(unused), " are free of ", bytes(host.memory_total));
  const std::string what =
      cat("host memory: ", env.local_world, env.local_world == 1 ? " rank needs " : " ranks need ",
          bytes(wanted), " (of each: state ", bytes(needs.state), ", checkpoint copy ",
          bytes(needs.copy), ", samples ", bytes(needs.samples), "); ", have);
  const std::string advice =
      "ask for more memory (--mem, the container's limit), or set checkpoint.async: false, "
      "data.prefetch lower, dist.offload: none";
  if (wanted > unused) return failed("host", ExitCode::kInternal, what, advice);
  if (double(wanted) > kTight * double(unused)) return warned("host", what, advice);
  return passed("host", what);
}

Finding check_gpu_memory(const GpuFacts& gpu, int64_t wanted) {
  const std::string what =
      cat("GPU memory: the plan needs ", bytes(wanted), ", ", bytes(gpu.memory_free), " of ",
          bytes(gpu.memory_total), " are free");
  const std::string advice =
      "mgm train --plan shows the parts; a lower train.micro_batch, train.recompute, "
      "dist.mode: zero3 or dist.offload: optimizer need less";
  if (wanted > gpu.memory_free) return failed("gpu", ExitCode::kInternal, what, advice);
  if (double(wanted) > kTight * double(gpu.memory_free)) return warned("gpu", what, advice);
  return passed("gpu", what);
}

Findings check_host(const HostFacts& host, const Needs& needs, const RunConfig& config,
                    const LaunchEnv& env) {
  Findings out = {check_host_memory(host, needs, env)};
  check_limits(host, needs, config, env, out);
  return out;
}

Findings check_gpu(const GpuFacts& gpu, const Needs& needs, const RunConfig& config,
                   const DeviceSetup& device) {
  if (gpu.ordinal < 0) {
    if (config.train.device == DeviceKind::kCpu) return {passed("gpu", "train.device: cpu")};
    return {warned("gpu",
                   cat("no GPU: the run takes the CPU (train.device: auto; ",
                       gpu.built ? "none is visible" : "this build has no CUDA", ")"),
                   "check nvidia-smi and CUDA_VISIBLE_DEVICES, or set train.device: cpu")};
  }
  Findings out = {
      passed("gpu", cat(gpu.name, ", CUDA driver ", gpu.driver / 1000, ".", gpu.driver % 1000 / 10,
                        ", runtime ", gpu.runtime / 1000, ".", gpu.runtime % 1000 / 10, ", NCCL ",
                        gpu.nccl / 10000, ".", gpu.nccl / 100 % 100, ".", gpu.nccl % 100))};
  if (device.dtype == at::kBFloat16 && gpu.major < 8) {
    out.push_back(failed("gpu", ExitCode::kConfig,
                         cat(gpu.name, " (compute capability ", gpu.major, ".", gpu.minor,
                             ") has no bfloat16; 8.0 and above have"),
                         "set train.dtype: float32, or take an Ampere or newer GPU"));
  }
  if (gpu.driver / 1000 < gpu.runtime / 1000) {
    out.push_back(failed("gpu", ExitCode::kInternal,
                         cat("the driver knows CUDA ", gpu.driver / 1000, ", this build uses CUDA ",
                             gpu.runtime / 1000),
                         "install a newer driver"));
  }
  const int64_t used = gpu.memory_total - gpu.memory_free;
  if (used > kForeign) {
    out.push_back(warned("gpu",
                         cat(bytes(used), " of ", bytes(gpu.memory_total),
                             " of the GPU are in use already, by other processes"),
                         "nvidia-smi lists them; another rank on this GPU would be one"));
  }
  out.push_back(check_gpu_memory(gpu, needs.device));
  return out;
}

Finding check_disk(const std::string& dir, int64_t free_bytes, int64_t held, const Needs& needs) {
  if (needs.checkpoints == 0) {
    return warned("disk",
                  cat("checkpoints are off: what is trained is lost at the end; one that a signal "
                      "asks for needs ",
                      bytes(needs.checkpoint), " in run.dir ", dir, ", the disk has ",
                      bytes(free_bytes), " free"),
                  "set checkpoint.at_end, checkpoint.every_steps or checkpoint.every_minutes");
  }
  const int64_t wanted = needs.checkpoints * needs.checkpoint;
  const int64_t room = free_bytes + std::min(held, wanted);
  const std::string what = cat(
      "run.dir ", dir, ": ",
      needs.checkpoints == 1
          ? cat("the checkpoint at the end needs ", bytes(wanted))
          : cat(needs.checkpoints, " checkpoints (checkpoint.keep and the one being written) of ",
                bytes(needs.checkpoint), " need ", bytes(wanted)),
      "; the disk has ", bytes(free_bytes), " free",
      held > 0 ? cat(", earlier checkpoints hold ", bytes(held)) : std::string());
  const std::string advice = "free some space, lower checkpoint.keep, or choose another run.dir";
  if (wanted > room) return failed("disk", ExitCode::kInternal, what, advice);
  if (double(wanted) > kTight * double(room)) return warned("disk", what, advice);
  return passed("disk", what);
}

int64_t free_on_disk(const fs::path& dir) {
  fs::path there = fs::absolute(dir);
  std::error_code code;
  while (!fs::exists(there, code) && there.has_relative_path()) there = there.parent_path();
  const fs::space_info space = fs::space(there, code);
  if (code) throw InternalError(there.string(), ": free space: ", code.message());
  return static_cast<int64_t>(space.available);
}

int64_t held_by_checkpoints(const fs::path& run_dir) {
  int64_t held = 0;
  for (const int64_t step : list_train_checkpoints(run_dir)) {
    std::error_code code;  // a checkpoint may be removed meanwhile
    for (const auto& entry : fs::directory_iterator(train_checkpoint_dir(run_dir, step), code)) {
      const auto size = entry.file_size(code);
      if (!code) held += static_cast<int64_t>(size);
    }
  }
  return held;
}

}  // namespace mgm
