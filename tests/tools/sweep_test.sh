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
  # What nobody can read is not gone on with: of a hundred million points, not even the header arrives.
  output=/dev/full fails 1 'cannot write standard output: No space' sweep --schedules 1f1b -p 4 -m 64 --jitter 0.1 \
    --seeds 1000000 --set forward=1x,2x,3x,4x,5x,6x,7x,8x,9x,10x --set latency=0,1us,2us,3us,4us,5us,6us,7us,8us,9us
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

# Schedules of files: shards and what goes on later have a copy of them, and need the files no more.
test_files() {
  quiet convert zb1p -p 4 -m 16 --to json --output mine.json
  quiet convert interleaved -p 8 -m 16 -v 2 --to csv --output mine.csv
  local files=(sweep --schedules 1f1b,mine.json,mine.csv -p 4,8 -m 16 --set latency=0,10us --set speed=1,0.8@2)
  quiet "${files[@]}" -o files.jsonl
  [[ $(grep -c '"schedule":"mine.json","ranks":4,"microbatches":16,.*makespan' files.jsonl) == 4 ]] || fail "no mine.json"
  [[ $(grep -c '"schedule":"mine.csv","ranks":8,"microbatches":16,.*makespan' files.jsonl) == 4 ]] || fail "no mine.csv"
  [[ $(wc -l <files.jsonl) == 17 ]] || fail "not 16 points"
  for shard in 1 2 3; do quiet "${files[@]}" -o file_shard$shard.jsonl --shard $shard/3; done
  head -n 3 file_shard3.jsonl >file_shard3.jsonl.partial
  rm file_shard3.jsonl
  sed -i 's/"name":"zb1p"/"name":"other"/; s/"name": "zb1p"/"name": "other"/' mine.json
  fails 1 'of another sweep' "${files[@]}" -o file_shard3.jsonl --shard 3/3 --resume
  quiet convert zb1p -p 4 -m 16 --to json --output mine.json
  quiet "${files[@]}" -o file_shard3.jsonl --shard 3/3 --resume
  rm mine.json mine.csv
  quiet merge file_shard*.jsonl -o file_merged.jsonl
  cmp files.jsonl file_merged.jsonl || fail "shards merge to other bytes"
  succeeds '^ *1 .* mine.json ' report files.jsonl --html files.html
  fails 1 'mine.json' "${files[@]}" -o gone.jsonl
  quiet convert zb1p -p 4 -m 16 --to json --output mine.json
  fails 1 'mine.json has 4 ranks and 16 micro-batches, a shape that this sweep does not go through' \
    sweep --schedules 1f1b,mine.json -p 8 -m 16
  fails 1 'a sweep needs its shapes' sweep --schedules 1f1b,mine.json -p 4
  succeeds '"points":2,' sweep --schedules 1f1b,mine.json
}

# What was measured with one size is what a plan has there, and changes with the others.
test_measured() {
  local shape=(--config config.json --sequence 8192 --tensor-parallel 8 --data-parallel 1)
  echo '{"format": "dualpipe-costs", "version": 1, "stages": [{"forward_ns": 40000000, "backward_ns": 80000000,
    "input_gradient_ns": 40000000, "weight_gradient_ns": 40000000}]}' >measured.json
  succeeds '80 of 82 parts were measured' estimate "${shape[@]}" --calibrated measured.json -o calibrated.json
  local plan=(sweep --gpus 64 --global-batch 64 --schedules 1f1b -p 8)
  quiet "${plan[@]}" --costs calibrated.json -o measured.jsonl
  quiet "${plan[@]}" --costs model.json -o estimated.jsonl
  local of='"tensor_parallel":8,"data_parallel":1,"ranks":8' makespan
  makespan=$(sed -n "s/.*$of.*\"makespan_ns\":\([0-9]*\),.*/\1/p" measured.jsonl)
  # Ten layers on a rank, each of 120 ms, and 64 micro-batches through 8 ranks.
  ((makespan > 71 * 10 * 120000000 && makespan < 75 * 10 * 120000000)) || fail "measured layers make $makespan ns"
  [[ $(grep -c makespan measured.jsonl) == $(grep -c makespan estimated.jsonl) ]] || fail "other points"
  succeeds 'best first' report measured.jsonl
}

test_plan() {
  cat >config.json <<'JSON'
{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
 "num_hidden_layers": 80, "num_key_value_heads": 8, "vocab_size": 128256}
JSON
  succeeds '70.55 B parameters' estimate --config config.json --sequence 8192 --gpu h100 -o model.json
  # The cuts of interleaved's stages take it a second of its own, and so much longer where others have the cores.
  within=240 quiet sweep --gpus 64 --global-batch 256 --costs model.json --schedules 1f1b,zb1p,interleaved -o plan.jsonl
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
test_files
test_plan
test_measured

echo "$checks checks, $failures failures"
((failures == 0))
