#!/usr/bin/env bash
# The whole matrix of tests/dist on a host with many cores: shards of one gtest binary beside each other.
#   tests/bench/full_matrix.sh BUILD_DIR SHARDS
set -uo pipefail
build=$1 shards=$2
out=$(mktemp -d)
export MGM_TEST_FULL=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive GTEST_TOTAL_SHARDS=$shards
for ((i = 0; i < shards; ++i)); do
  GTEST_SHARD_INDEX=$i "$build/tests/test_dist" >"$out/$i" 2>&1 &
done
wait
grep -hE '^\[  (PASSED|FAILED)' "$out"/* | sort | uniq -c
grep -hE 'Failure|FAILED  \]' "$out"/* | sort | uniq -c | head -40
