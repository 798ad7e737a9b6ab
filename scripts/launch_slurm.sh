#!/usr/bin/env bash
# An mgm command as a SLURM job: srun starts one rank per task, which is one per GPU (docs/cluster.md).
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#     scripts/launch_slurm.sh train configs/stage2/vicuna_7b.yaml --set run.dir=/shared/runs/7b
#   sbatch --nodes=1 --ntasks-per-node=2 --cpus-per-task=4 scripts/launch_slurm.sh train ...     # no GPUs
# Five minutes before the time limit every rank gets SIGTERM, saves and ends; the job then goes back into the
# queue and on from there. A rank killed by a signal, or exit code 1 or 5, starts all ranks again in the same
# allocation; any other exit code would come again and ends the job.
#   MGM           the binary (default: build/release/bin/mgm of the folder that sbatch ran in)
#   MGM_RESTARTS  how often the ranks are started again after a failure (default 3)
#   MGM_WAIT      seconds that the other ranks have when one has ended (default 120)
#   MASTER_ADDR   rank 0's address, if its node's name does not lead there
#SBATCH --job-name=mgm
#SBATCH --output=mgm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -uo pipefail
say() { printf 'launch_slurm: %s\n' "$*"; }

if [ -z "${SLURM_JOB_ID:-}" ] || [ $# = 0 ]; then
  sed -n '2,13p' "$0" >&2
  exit 2
fi
mgm=${MGM:-${SLURM_SUBMIT_DIR:-.}/build/release/bin/mgm}
if [ ! -x "$mgm" ]; then
  say "$mgm is no program; build it (scripts/build.sh), or name one that every node sees: MGM=/shared/mgm/bin/mgm"
  exit 2
fi
# Since SLURM 22.05 srun does not take this from sbatch.
[ -n "${SLURM_CPUS_PER_TASK:-}" ] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# Every rank sees all GPUs of its node and takes the one of its local rank.
gpus=()
[ -n "${SLURM_GPUS_ON_NODE:-}" ] && gpus=(--gpu-bind=none)

reports=$(mktemp)
trap 'rm -f "$reports"' EXIT
for ((start = 0; ; ++start)); do
  say "job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-}, requeued ${SLURM_RESTART_COUNT:-0} times: start $start of" \
    "${SLURM_NTASKS:-1} ranks"
  # The ranks end each other when one fails. srun must not: it would send those that are saving a second SIGTERM.
  srun --label --kill-on-bad-exit=0 --wait="${MGM_WAIT:-120}" --distribution=block "${gpus[@]}" "$mgm" "$@" 2>&1 |
    (trap '' TERM && exec sed -u "/^srun: error: .*: tasks\\? [0-9]/w $reports") # scancel signals it too
  code=${PIPESTATUS[0]}
  [ "$code" = 0 ] && exit 0

  # srun gives the highest exit code; what decides is whether one of them forbids another try.
  stopped=1
  while read -r report; do
    case $report in
      *"Exited with exit code "[2346]) code=${report##* } ; say "exit code $code would come again"; exit "$code" ;;
      *"Exited with exit code 143" | *"Exited with exit code 138" | *"Exited with exit code 130") ;;
      *": Terminated") ;; # by SIGTERM before it could be caught
      *) stopped=0 ;;
    esac
  done <"$reports"
  if [ "$stopped" = 1 ] && [ "$code" -ge 128 ]; then
    say "the ranks were stopped (exit code $code); putting job $SLURM_JOB_ID back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || say "it cannot be requeued; submit it again, it goes on from the last save"
    exit "$code"
  fi
  if [ "$start" -ge "${MGM_RESTARTS:-3}" ]; then
    say "failed with exit code $code; all ${MGM_RESTARTS:-3} restarts (MGM_RESTARTS) are used up"
    exit "$code"
  fi
  say "failed with exit code $code; starting all ranks again"
  sleep 5
done
