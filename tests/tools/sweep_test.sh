#!/usr/bin/env bash
# dualpipe-sim estimate, sweep, merge and report, together: what is killed goes on to the same bytes, what cannot be
# written is said, and a page stands by itself.
#
#   tests/tools/sweep_test.sh build/release/bin/dualpipe-sim
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/sim_checks.sh"

grid=(sweep --schedules 1f1b,zb1p,interleaved -p 4,8 -m 16 --set latency=0,10us,20us --set forward=0.9x,1x,1.1x
  --jitter 0.05 --seeds 20 --activation-bytes 64MB --memory-limit 400MB)

# quiet ARGUMENT...: status 0, and nothing on stdout or stderr.
quiet() {
  run "$@"
  ((status == 0)) || fail "status $status, not 0"
  [[ ! -s stdout && ! -s stderr ]] || fail "says something"
}

test_threads_and_shards() {
  quiet "${grid[@]}" -o one.jsonl -j 1
  [[ $(wc -l <one.jsonl) == 1081 ]] || fail "not 1080 points"
  quiet "${grid[@]}" -o two.jsonl -j 2
  cmp one.jsonl two.jsonl || fail "two threads write other bytes"
  for shard in 1 2 3 4; do quiet "${grid[@]}" -o shard$shard.jsonl --shard $shard/4; done
  quiet merge shard*.jsonl -o merged.jsonl
  cmp one.jsonl merged.jsonl || fail "shards merge to other bytes"
  SLURM_ARRAY_TASK_ID=6 SLURM_ARRAY_TASK_MIN=5 SLURM_ARRAY_TASK_MAX=8 SLURM_ARRAY_TASK_COUNT=4 \
    quiet "${grid[@]}" -o array.jsonl
  cmp array.jsonl shard2.jsonl || fail "the second task of an array has another shard"
  fails 1 'missing: 2, 6, .*--shard 3/4' merge shard1.jsonl shard2.jsonl shard4.jsonl
  fails 1 'missing: 2, 6, .*--shard 3/4' merge shard1.jsonl shard2.jsonl shard4.jsonl -o hole.jsonl
  [[ ! -e hole.jsonl ]] || fail "wrote what is not whole"
  succeeds '^point,schedule,ranks' merge shard*.jsonl --format csv
  cp stdout merged.csv
  succeeds '^point,schedule,ranks' "${grid[@]}" --format csv
  cmp stdout merged.csv || fail "the same in CSV is another"
}

# Killed at a random moment, again and again, each time it goes on.
test_killed() {
  local kills=0 point=$RANDOM
  while ((kills < 50)); do
    rm -f killed.jsonl killed.jsonl.partial
    while [[ ! -e killed.jsonl ]]; do
      "$dualpipe_sim" "${grid[@]}" -o killed.jsonl --resume -j 2 &
      point=$(((point * 1103515245 + 12345) % 2147483648))
      sleep 0.0$((10 + point / 65536 % 60))
      if kill -KILL $! 2>/dev/null; then kills=$((kills + 1)); fi
      wait $! 2>/dev/null || true
    done
    command=(killed after "$kills")
    checks=$((checks + 1))
    cmp one.jsonl killed.jsonl || fail "resumed, it has other bytes"
  done
  [[ ! -e killed.jsonl.partial ]] || fail "left a file behind"
}

test_what_cannot_be_written() {
  fails 1 'cannot write no/such/x.jsonl: No such file' "${grid[@]}" -o no/such/x.jsonl
  fails 1 'is a folder' "${grid[@]}" -o .
  output=/dev/full fails 1 'cannot write standard output: No space' "${grid[@]}"
  # A disk that is full after 16 KiB, and later is not.
  command=(full disk)
  checks=$((checks + 1))
  status=0
  (trap '' XFSZ; ulimit -f 16; exec "$dualpipe_sim" "${grid[@]}" -o full.jsonl) >stdout 2>stderr || status=$?
  ((status == 1)) || fail "status $status, not 1"
  grep -q '^error: cannot write full.jsonl.partial: .*--resume goes on' stderr || fail "does not say why, and what to do"
  [[ ! -e full.jsonl ]] || fail "what is not whole has the name of it"
  fails 1 'was interrupted, and left it; --resume' "${grid[@]}" -o full.jsonl
  quiet "${grid[@]}" -o full.jsonl --resume
  cmp one.jsonl full.jsonl || fail "resumed, it has other bytes"
  fails 1 'of another sweep' "${grid[@]}" --launch 1us -o full.jsonl --resume
}

test_plan() {
  cat >config.json <<'JSON'
{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
 "num_hidden_layers": 80, "num_key_value_heads": 8, "vocab_size": 128256}
JSON
  succeeds '70.55 B parameters' estimate --config config.json --sequence 8192 --gpu h100 -o model.json
  quiet sweep --gpus 64 --global-batch 256 --costs model.json --schedules 1f1b,zb1p,interleaved -o plan.jsonl
  grep -q '"tensor_parallel":8,"data_parallel":2,"ranks":4' plan.jsonl || fail "8 x 4 x 2 is not there"
  ! grep -v '"fits":\|left_out\|"grid"' plan.jsonl || fail "a point does not say whether it fits"
  succeeds 'best first' report plan.jsonl --html plan.html
  ! grep -qE '(src|href)="?https?:|@import|url\(' plan.html || fail "the page needs something else"
  fails 1 'give --costs that dualpipe-sim estimate wrote' sweep --gpus 64 --global-batch 256
  fails 1 '64 GPUs cannot share a batch of 7' sweep --gpus 64 --global-batch 7 --costs model.json -p 5
}

test_threads_and_shards
test_killed
test_what_cannot_be_written
test_plan

echo "$checks checks, $failures failures"
((failures == 0))
