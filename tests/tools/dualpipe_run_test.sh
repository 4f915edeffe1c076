#!/usr/bin/env bash
# dualpipe-run as its users meet it: what it prints, where, and its exit status (0 done, 1 bad input or failed run, 2
# wrong usage). How runs end, other than well, is in dualpipe_run_ends_test.sh.
#
#   tests/tools/dualpipe_run_test.sh build/release/bin/dualpipe-run build/release/bin/dualpipe-sim
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/run_checks.sh"

test_help() {
  succeeds 'dualpipe-run dualpipe' --help
  succeeds '^[0-9]+\.[0-9]+\.[0-9]+$' --version
}

test_usage() {
  fails 2 '^error: SCHEDULE is required$'
  fails 2 '--schedule' 1f1b --schedule zb1p "${small[@]}"
  fails 2 'no-such-option' "${shape[@]}" --no-such-option
  fails 1 "^error: --model: it is one of gpt, .*'gtp'; did you mean gpt\?$" "${shape[@]}" --model gtp
  fails 2 '^error: --layrs: there is no such option; did you mean --layers\?$' "${shape[@]}" --layrs 4
  fails 1 "there is no schedule named '1f1bb'; did you mean 1f1b\?" 1f1bb "${small[@]}"
  fails 2 '--eval.*--check|--check.*--eval' "${shape[@]}" --eval --check
  fails 2 '--save.*--eval|--eval.*--save' "${shape[@]}" --eval --save saved
  fails 2 '--calibrate.*--eval|--eval.*--calibrate' "${shape[@]}" --eval --calibrate costs
  fails 2 '--costs.*--forward' "${timed[@]}" --costs costs.json --forward 1ms
  fails 2 '--save-every.*--save' "${shape[@]}" --save-every 2
  fails 2 '--steps.*empty' --schedule 1f1b "${tiny[@]}" --steps ''
}

# What would do nothing is refused where it was given; what is there by default is not.
test_options_of_other_models() {
  local option
  for option in '--heads 4' '--sequence 4' '--vocabulary 9' '--norm layer' --tied '--data tokens'; do
    fails 2 "^error: ${option% *}: .*--model mlp.*--model gpt or moe\$" "${mlp[@]}" $option
  done
  for option in '--experts 4' '--top-k 1' '--expert-hidden 8' '--capacity 2' --no-interleave; do
    fails 2 "^error: ${option% *}: .*--model gpt.*--model moe\$" "${shape[@]}" $option
  done
  for option in '--layers 2' '--hidden 8' '--batch 1' '--dtype float64' '--optimizer sgd' '--learning-rate 1' '--clip 1' \
    '--seed 1' '--save saved' '--resume saved' --check '--threads-per-rank 1'; do
    fails 2 "^error: ${option% *}: .*--model timed.*--model gpt, moe or mlp\$" "${timed[@]}" $option
    fails 2 "^error: ${option% *}: .*--model empty" "${empty[@]}" $option
  done
  fails 2 '--recompute: .*--model empty.*gpt, moe, mlp or timed$' "${empty[@]}" --recompute full
  for option in --forward --backward --weight --recompute-time --overlapped; do
    fails 2 "^error: $option: .*--model gpt.*--model timed\$" "${shape[@]}" $option 1ms
  done
  fails 2 '--speed' "${timed[@]}" --speed 1,2  # a rank takes the time that its stages take
  succeeds 'median of 2' "${empty[@]}" "${short[@]}" --timeout 20s --link-delay 10us
  succeeds 'median of 2' "${mlp[@]}" --layers 4 --seed 1 --threads-per-rank 1
  succeeds '^ *--top-k N .*\[moe\]' --help
}

# As one of several processes that nothing connects. A batch script alone, in a job of several, is none.
test_one_of_several_processes() {
  RANK=0 WORLD_SIZE=4 fails 2 '--transport threads: torchrun has started 4 processes.*--transport nccl' "${shape[@]}"
  RANK=0 WORLD_SIZE=4 fails 2 '--transport threads: torchrun' "${shape[@]}" --transport threads
  RANK=0 WORLD_SIZE=4 fails 1 'MPI sees only this one|built without MPI' "${shape[@]}" --transport mpi
  RANK=0 WORLD_SIZE=1 succeeds 'median of 2' "${shape[@]}"
  SLURM_PROCID=0 SLURM_NTASKS=4 succeeds 'median of 2' "${shape[@]}"
  SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 fails 2 'srun has started 4 processes.*--mpi=pmix' "${shape[@]}"
  SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 fails 2 'srun has started 4 processes.*nccl' "${shape[@]}" --device cuda
}

test_bad_input() {
  fails 1 'no-such.*1f1b' --schedule no-such "${small[@]}"
  fails 1 '--layers.*3 values.*2 stages' "${shape[@]}" --layers 1,2,3
  fails 1 '--steps.*none' --schedule 1f1b "${tiny[@]}" --steps none
  fails 1 '--learning-rate' "${shape[@]}" --learning-rate -1
  fails 1 'heads' "${shape[@]}" --heads 3
  fails 1 'no-such-file' "${shape[@]}" --data no-such-file
  fails 1 'no-such-folder/trace.json.*No such' "${shape[@]}" --trace no-such-folder/trace.json
  fails 2 '^error: --trace and --json: only one.*standard output' "${shape[@]}" --json - --trace -
  fails 1 '^error: --profile: standard output' "${shape[@]}" --profile --json -
  fails 1 '^error: --compare: standard output' "${shape[@]}" --compare --calibrate -
  succeeds '"rank 00 planned compute"' "${shape[@]}" --compare --trace -
  fails 2 '^error: --save and --json: both would write results' "${shape[@]}" --save results --json ./results
  fails 2 '^error: --json: it would write over tokens, which --data reads' "${shape[@]}" --data tokens --json tokens
  succeeds 'median of 2' "${shape[@]}" --save saved
  succeeds 'median of 2' "${shape[@]}" --resume saved --save saved
  fails 2 '^error: --trace: it would write over saved, which --resume reads' "${shape[@]}" --resume saved --trace ./saved
  fails 2 '^error: --trace: the value is empty' "${shape[@]}" --trace ''
  succeeds 'median of 2' "${shape[@]}" --trace /dev/null --json /dev/null
  fails 1 'mlp has no attention.*gpt' "${mlp[@]}" --recompute attention
  fails 1 'moe: a token cannot go to 9 of 8 experts; lower --top-k' "${shape[@]}" --model moe --top-k 9
  fails 1 '--capacity: it must be above 0' "${shape[@]}" --model moe --capacity 0
  fails 1 'no-such-folder/saved.*No such' "${shape[@]}" --save no-such-folder/saved
  fails 1 '--save.*file' "${shape[@]}" --save -
  fails 1 'no-such-file' "${shape[@]}" --resume no-such-file
}

# Each is told by its option, however far off it is.
test_numbers() {
  local option value
  fails 1 "^error: --ranks: 'nan' " --schedule 1f1b --ranks nan --microbatches 4
  fails 1 "^error: --microbatches: 'nan' " --schedule 1f1b --ranks 2 --microbatches nan
  for option in --layers --hidden --heads --sequence --vocabulary --batch --steps --warmup --learning-rate --clip --seed \
    --save-every --threads-per-rank --timeout --link-delay; do
    fails 1 "^error: $option: 'nan' " --schedule 1f1b "${ranks[@]}" --save saved $option nan
  done
  for option in --experts --top-k --expert-hidden --capacity; do
    fails 1 "^error: $option: 'nan' " "${shape[@]}" --model moe $option nan
  done
  for option in --forward --backward --weight --recompute-time --overlapped; do
    fails 1 "^error: $option: 'nan' " "${timed[@]}" $option nan
  done
  for value in 0 -1 1e300 1e31 inf -inf 1e999 0x10 1e-999; do
    fails 1 '^error: --learning-rate: ' "${shape[@]}" --learning-rate $value
  done
  fails 1 '^error: --learning-rate: it must be at most 1e\+30, and is 1e300$' "${shape[@]}" --learning-rate 1e300
  succeeds 'median of 2' "${shape[@]}" --clip 1e300
  succeeds 'median of 2' "${shape[@]}" --model moe --capacity 1e300
}

# A schedule with nothing to learn from: AdamW would let the parameters decay all the same.
test_forwards_alone() {
  printf '0F0\n1F0\n' >forwards.csv
  fails 1 'forwards.csv.*--eval' --schedule forwards.csv --hidden 8 --sequence 4 --batch 1
  succeeds 'median of 10' --schedule forwards.csv --hidden 8 --sequence 4 --batch 1 --eval
}

test_training() {
  succeeds '^ +1 +[0-9.]+ +warm-up$' "${shape[@]}"
  holds '^ +3 +[0-9.]+ +[0-9.]+ (µs|ms|s)$'
  holds '^step +.* the median of 2$'
  sed -n 's/^ *[0-3]  \([0-9.]*\) .*/\1/p' stdout | head -n 4 >first
  succeeds . "${shape[@]}"
  sed -n 's/^ *[0-3]  \([0-9.]*\) .*/\1/p' stdout | head -n 4 >second
  [[ $(wc -l <first) == 4 ]] || fail "not the losses of 4 steps"
  cmp -s first second || fail "losses differ from one run to the next"
}

# A forward and a backward of 5 ms each, and pairs of them.
test_pairs() {
  local sleeps=(--schedule dualpipe --ranks 2 --microbatches 4 --model timed --forward 5ms --backward 5ms --steps 2)
  succeeds '^F&B +[0-9.]+ ms +[0-9.]+ times F \+ B, [0-9.]+ ms \+ [0-9.]+ ms; medians$' "${sleeps[@]}" \
    --json pairs.json
  holds '"overlapped_ns": [0-9]{8,},' pairs.json
  holds '"overlapped_of_sum": [0-9.]+,' pairs.json
  succeeds 'makespan' "${timed[@]}" --forward 1ms --steps 2
  ! grep -q 'times F + B' stdout || fail "names pairs, which 1F1B has not"
}

test_device() {
  fails 1 '--device.*tpu' "${shape[@]}" --device tpu
  fails 2 '--copy: .*--device cuda$' "${shape[@]}" --copy
  fails 2 '--sm-partition: .*--device cuda$' "${shape[@]}" --sm-partition
  fails 2 '--link-delay: .*--device cuda.*--device cpu$' "${shape[@]}" --device cuda --link-delay 1ms
  fails 2 '--threads-per-rank: .*--device cuda.*--device cpu$' "${shape[@]}" --device cuda --threads-per-rank 2
  fails 1 '--model timed.*--device cuda' "${timed[@]}" --device cuda
  export DUALPIPE_CUDA_MODULE=no-such-file.so
  fails 1 'no file no-such-file.so' "${shape[@]}" --device cuda
  DUALPIPE_CUDA_MODULE=$dualpipe_run
  fails 1 'cannot be loaded' "${shape[@]}" --device cuda
  unset DUALPIPE_CUDA_MODULE
}

test_check() {
  for schedule in 1f1b zb1p dualpipe dualpipev; do
    succeeds '^check +passed: losses bitwise equal, gradients bitwise equal$' --schedule $schedule "${small[@]}" \
      --dtype float64 --check --clip 0.1
  done
  succeeds '^check +passed: losses bitwise equal, gradients bitwise equal$' --schedule dualpipe --ranks 2 \
    --microbatches 4 --steps 2 --warmup 2 --dtype bfloat16 --check
  holds '^ +bfloat16: gradients must be bitwise equal; from float32 .* relative L2 of 0\.0[0-9]+, and 0\.0141 is allowed$'
  fails 1 'float16' "${shape[@]}" --dtype float16
  "$dualpipe_sim" search -p 4 -m 8 --placement v --memory-limit 3microbatches -f 1ms -b 2.3ms -w 0.7ms --latency 0.1ms \
    --budget 3000 -o found.json > found.txt
  grep -q '^\*  search ' found.txt || fail 'the catalog has what a search was to find'
  succeeds '^check +passed: losses bitwise equal, gradients bitwise equal$' found.json --dtype float64 --check \
    --hidden 8 --batch 2 --steps 1 --warmup 1
  for recompute in full attention; do
    succeeds 'losses bitwise equal, gradients bitwise equal$' --schedule dualpipe "${small[@]}" --dtype float64 --check \
      --tied --norm rms --recompute $recompute
  done
  succeeds '"gradients_bitwise_equal": true' "${mlp[@]}" --optimizer sgd --check --json -
  holds '"max_loss_difference": 0'
  holds '"max_gradient_difference": 0'
}

test_data() {
  printf '\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0\5\0\0\0\6\0\0\0\7\0\0\0\10\0\0\0\11\0\0\0' >tokens
  succeeds 'median of 2' "${shape[@]}" --data tokens
  fails 1 'vocabulary' "${shape[@]}" --data tokens --vocabulary 5
}

test_eval() {
  succeeds 'median of 2' "${shape[@]}" --eval --json json
  holds '"measured_peak_activations": 1' json
}

test_results() {
  succeeds 'measured / planned' --schedule dualpipe "${small[@]}" --compare --profile --trace trace --json json \
    --calibrate costs
  holds '^ *F&B '
  holds "^all ranks' time +planned +measured +more"
  holds '^meanwhile: '
  holds 'rank 00 planned' trace
  holds 'rank 01 measured' trace
  for key in schedule ranks microbatches model transport losses step_ns predicted_makespan_ns measured_makespan_ns \
    busy_ns idle_ns predicted_idle_ns peak_activations peak_memory_bytes predicted_peak_memory_bytes \
    planned_busy_ns measured_busy_ns planned_idle_ns measured_idle_ns measured_causes measured_peak_activations \
    planned_peak_memory_bytes measured_peak_memory_bytes; do
    holds "\"$key\": " json
  done
  # The trace holds all that the report was made of.
  cp stdout report
  "$dualpipe_sim" compare trace >compared 2>stderr || fail "the trace is not read back"
  [[ $(<report) == *"$(sed 1,3d compared)"* ]] || fail "dualpipe-sim compare has another report"
  "$dualpipe_sim" simulate dualpipe --ranks 2 --microbatches 4 --costs costs >stdout 2>stderr || fail "costs not read"
  succeeds 'predicted' --schedule dualpipe "${small[@]}" --compare --costs costs

  # What it ran on, and what ops were made of.
  succeeds 'median of' --schedule dualpipe "${small[@]}" --model moe --dtype bfloat16 --compare --trace trace --json json
  holds '"devices": \[$' json
  holds '^    "cpu",$' json
  for value in '"transport": "threads"' '"dtype": "bfloat16"' '"copy": false' '"sm_partition": false'; do
    holds "$value," json
  done
  holds '"rank 01 measured compute on cpu".*"device":"cpu","transport":"threads","dtype":"bfloat16","copy":"off"' trace
  holds '"args":\{"name":"rank 00 measured compute, stage 0"\}' trace
  holds '"name":"rank 00 measured exchange"' trace
  holds '"cat":"part","name":"dispatch 0F0","args":\{"op":"0F0",' trace
  holds '"name":"experts dW 0B0"' trace
  cp stdout report
  "$dualpipe_sim" compare trace >compared 2>stderr || fail "a trace with parts is not read back"
  [[ $(<report) == *"$(sed 1,3d compared)"* ]] || fail "dualpipe-sim compare has another report of a trace with parts"
}

# F, I and W of 2 ms: 4 micro-batches cannot take less than 24 ms.
test_timed() {
  succeeds '"predicted_makespan_ns": 26000000,' --schedule zb1p "${ranks[@]}" "${short[@]}" --model timed --forward 2ms \
    --backward 4ms --weight 2ms --json -
  local makespan
  makespan=$(sed -n 's/^  "measured_makespan_ns": \([0-9]*\),/\1/p' stdout)
  ((makespan >= 26000000 && makespan < 1000000000)) || fail "a makespan of $makespan ns"

  # 4 micro-batches of F 1 ms and B 2 + 1 ms on each of 2 ranks, and a bubble of one.
  succeeds '"predicted_makespan_ns": 20000000,' "${timed[@]}" "${short[@]}" --recompute-time 1ms --json -
  makespan=$(sed -n 's/^  "measured_makespan_ns": \([0-9]*\),/\1/p' stdout)
  ((makespan >= 20000000 && makespan < 1000000000)) || fail "a makespan of $makespan ns"
}

# 1F1B takes (M + P - 1)(F + B); B begins with an F.
test_timed_recomputation() {
  succeeds '"predicted_makespan_ns": 20000000,' "${timed[@]}" "${short[@]}" --forward 1ms --backward 2ms \
    --recompute full --json -
  local makespan
  makespan=$(sed -n 's/^  "measured_makespan_ns": \([0-9]*\),/\1/p' stdout)
  ((makespan >= 20000000)) || fail "a makespan of $makespan ns"
}

# 1F1B of two ranks and 4 micro-batches, F 1 ms and B 2 ms, waits for 4 activations and 4 gradients that are 5 ms under
# way: 0F0 1F0 0B0 0B1 0B2 0B3 come one after the other at 0, 6, 14, 17, 30 and 33 ms, and the last ends at 35 ms.
test_timed_latency() {
  echo '{"format": "dualpipe-costs", "version": 1, "stages": [{"forward_ns": 1000000, "backward_ns": 2000000,
    "input_gradient_ns": 1000000, "weight_gradient_ns": 1000000, "message_bytes": 1000}], "communication": "links",
    "latency_ns": 5000000, "bandwidth_bytes_per_s": 1000, "launch_ns": 1000000}' >costs
  local makespan
  succeeds '"predicted_makespan_ns": 35000000,' "${timed[@]}" "${short[@]}" --costs costs --json -
  makespan=$(sed -n 's/^  "measured_makespan_ns": \([0-9]*\),/\1/p' stdout)
  ((makespan >= 35000000 && makespan < 1000000000)) || fail "a makespan of $makespan ns"
  succeeds '"predicted_makespan_ns": 15000000,' "${timed[@]}" "${short[@]}" --costs costs --link-delay 0 --json -
  fails 1 '--timeout' "${timed[@]}" --costs costs --timeout 5ms
  fails 1 "^error: --timeout: '5' has no unit" "${timed[@]}" --timeout 5
}

# Costs that cannot be read are known before the run.
test_wrong_costs() {
  local endless=("${tiny_mlp[@]}" --steps 1000000)
  fails 1 'no-such-file.*No such' "${endless[@]}" --compare --costs no-such-file
  local stage='{"forward_ns": 1, "backward_ns": 2, "input_gradient_ns": 1, "weight_gradient_ns": 1}'
  echo '{"format": "dualpipe-costs", "version": 1, "stages": ['"$stage, $stage]}" >costs
  fails 1 '2 stages.*has 4' --schedule interleaved --chunks 2 "${tiny[@]}" --steps 1000000 --costs costs
  echo '{"format": "dualpipe-costs", "version": 1, "cut": [1, 1], "parts": ['"$stage, $stage]}" >costs
  fails 1 'cut for 2 stages.*has 4' --schedule interleaved --chunks 2 "${tiny[@]}" --steps 1000000 --costs costs
}

# What was measured on one schedule are the costs of the model, and serve all others.
test_costs_of_the_model() {
  local names
  names=$("$dualpipe_sim" schedules | sed -nE 's/^([a-z0-9-]+) .*/\1/p' | grep -vx name | paste -sd, -)
  [[ $names == *1f1b*,*dualpipev* ]] || fail "the catalog is not read: $names"
  succeeds . "${shape[@]}" --calibrate costs
  [[ $(grep -c '"forward_ns"' costs) == 2 ]] || fail "not a part for each of 2 ranks"
  for terms in stages ranks; do
    "$dualpipe_sim" table --costs costs --schedules "$names" --ranks 2 --microbatches 8 --chunks 2 --equal $terms \
      >stdout 2>stderr || fail "no table: $(<stderr)"
    ! grep 'no row for' stdout >left || fail "$(<left)"
    for name in ${names//,/ }; do holds "^[* ]*$name +([12] +)?[1-9][0-9.]* [mµ]?s .* [12]x +[0-9.]+ [KMG]iB"; done
    holds 'F&B = F \+ B \(not measured\)$'
  done
  for name in ${names//,/ }; do
    "$dualpipe_sim" simulate "$name" --ranks 2 --microbatches 8 --costs costs >stdout 2>stderr ||
      fail "$name is not simulated: $(<stderr)"
    run --schedule "$name" "${small[@]}" --compare --costs costs
    [[ $status == 0 && $(<stdout) == *predicted* ]] || fail "$name is not run"
    ! grep -v '^note: 2 chunks per rank, ' stderr || fail "stderr has more than a note of the chunks"
  done
  succeeds predicted --schedule interleaved --chunks 2 "${small[@]}" --compare --costs costs

  # From two chains, one part for each place in them; from two chunks, one for each.
  succeeds . --schedule dualpipe --ranks 2 --microbatches 8 "${small[@]:4}" --calibrate costs
  [[ $(grep -c '"forward_ns"' costs) == 2 ]] || fail "not a part for each of the 2 stages of a chain"
  [[ $(grep -c '"overlapped_ns"' costs) == 2 ]] || fail "not an F&B for each part"
  "$dualpipe_sim" table --costs costs --schedules dualpipe --ranks 2 --microbatches 8 >stdout 2>stderr
  ! grep 'F&B was not' stdout || fail "F&B was measured"
  succeeds . --schedule interleaved --chunks 2 "${small[@]}" --calibrate costs
  [[ $(grep -c '"forward_ns"' costs) == 4 ]] || fail "not a part for each of the 4 stages"
}

test_warnings() {
  local cores
  cores=$(nproc)
  command=("${tiny_mlp[@]}" --threads-per-rank "$cores")
  "$dualpipe_run" "${command[@]}" --steps 1 >stdout 2>stderr || fail "does not run"
  grep -qE "^warning: $((2 * cores)) threads of 2 ranks on $cores cores?: .*; --(threads-per-rank|ranks) [0-9]+ fits" stderr ||
    fail "does not warn of $((2 * cores)) threads on $cores cores"
  # NCCL would hang; threads, which take messages as they come, do not.
  printf '%s\n' 0F0,0SEND_F0,0F1,0SEND_F1,2RECV_F0,2F0,2RECV_F1,2F1,2SEND_F0,2SEND_F1,2RECV_B0,2B0,2SEND_B0,2RECV_B1,2B1,2SEND_B1,0RECV_B0,0B0,0RECV_B1,0B1 \
    1RECV_F0,1F0,1SEND_F0,1RECV_F1,1F1,1SEND_F1,3RECV_F0,3F0,3B0,3SEND_B0,3RECV_F1,3F1,3B1,3SEND_B1,1RECV_B0,1B0,1SEND_B0,1RECV_B1,1B1,1SEND_B1 >order.csv
  "$dualpipe_sim" validate order.csv >stdout 2>stderr || true
  grep -q '^stream: hangs$' stdout || fail "the test's schedule does not hang under NCCL"
  run --schedule order.csv --model timed --forward 1us --backward 2us --weight 1us --steps 1 --warmup 0
  ((status == 0)) || fail "status $status, not 0"
  [[ $(wc -l <stderr) == 1 ]] || fail "more than one line"
  grep -q '^warning: in the order in which NCCL runs messages this schedule hangs: rank . cannot ' stderr ||
    fail "does not warn of the order"
}

test_help
test_usage
test_options_of_other_models
test_one_of_several_processes
test_bad_input
test_numbers
test_forwards_alone
test_training
test_pairs
test_device
test_check
test_data
test_eval
test_results
test_timed
test_timed_recomputation
test_timed_latency
test_wrong_costs
test_costs_of_the_model
test_warnings

echo "$checks commands, $failures failures"
((failures == 0))
