#!/usr/bin/env bash
# A SLURM cluster of two nodes, n1 and n2, that are both this machine; all its files are in one folder, and
# nothing of it runs when the command has ended. Needs root, and Debian's slurm-wlm and munge:
#   apt-get install --no-install-recommends slurm-wlm munge
#   tests/slurm/local_cluster.sh FOLDER COMMAND...    runs COMMAND with SLURM_CONF set
set -euo pipefail
die() { printf 'local_cluster: %s\n' "$*" >&2; exit 1; }
[ $# -ge 2 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
[ "$(id -u)" = 0 ] || die "slurmd needs root"
PATH=$PATH:/usr/sbin
for tool in slurmctld slurmd sbatch srun scontrol munged; do
  command -v "$tool" >/dev/null || die "$tool is not there: apt-get install slurm-wlm munge"
done
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
mkdir -p "$dir"/{state,log,run,munge}
chmod 755 "$dir"
chmod 711 "$dir/munge"
host=$(hostname -s)
# Three ports below the range that free ones are drawn from.
port=$((20000 + $$ % 3000 * 3))

stop() {
  # slurmd stays as long as its jobs do.
  scancel --user="$(id -un)" 2>/dev/null
  for _ in $(seq 200); do
    [ -z "$(squeue --noheader 2>/dev/null)" ] && break
    sleep 0.1
  done
  for name in slurmd_n1 slurmd_n2 slurmctld munged; do
    [ -s "$dir/run/$name.pid" ] && kill "$(cat "$dir/run/$name.pid")" 2>/dev/null
  done
  for _ in $(seq 50); do
    alive=0
    for pid in "$dir"/run/*.pid; do
      [ -s "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null && alive=1
    done
    [ $alive = 0 ] && return 0
    sleep 0.1
  done
  return 0
}
trap stop EXIT

(umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/run/munged.pid" \
  --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" 2>"$dir/log/munged.err" ||
  { cat "$dir/log/munged.err" >&2; die "munged does not start"; }

cpus=$(nproc)
# A job that goes back into the queue stays there for as long as the credentials of its first run hold.
cat >"$dir/slurm.conf" <<CONF
ClusterName=mgm
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=$port
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool_%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd_%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0
KillWait=5
MinJobAge=3600
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=$cpus State=UNKNOWN
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$dir/slurm.conf
slurmctld
slurmd -N n1
slurmd -N n2
for _ in $(seq 100); do
  [ "$(sinfo --noheader --Node --format=%t 2>/dev/null | grep -c idle)" = 2 ] && break
  sleep 0.1
done
[ "$(sinfo --noheader --Node --format=%t | grep -c idle)" = 2 ] ||
  { tail -n 5 "$dir"/log/*.log >&2; die "the nodes do not come up"; }
# The variables of a job that this may run in are not for the jobs of this cluster.
for name in $(compgen -e SLURM_); do [ "$name" = SLURM_CONF ] || unset "$name"; done
"$@"
