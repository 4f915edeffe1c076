#!/usr/bin/env bash
# dualpipe-run ignores no option: each has its cases here, or fails (flags.sh). Those that belong to another model, and
# those of files, are in dualpipe_run_test.sh, too.
#
#   tests/tools/run_flags_test.sh build/release/bin/dualpipe-run
set -euo pipefail

tool=$(realpath "$1")
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

subcommand_of() { :; }

# Of the figures, those that are not measured.
losses() { sed -n '/"losses"/,/]/p; /"\(ranks\|stages\|chains\|microbatches\|model\|transport\|dtype\|first_step\|schedule\)"/p' stdout; }
compared() { losses; }

# predicts COMMAND OPTION [VALUE]...: changes what is predicted from durations that are given.
predicts() {
  compared() { grep '"predicted_makespan_ns"' stdout; }
  changes "$@"
  compared() { losses; }
}

small="-p 2 -m 4 --steps 2 --warmup 1"
gpt="1f1b $small --hidden 8 --sequence 4 --batch 1 --json -"
moe="dualpipe $small --hidden 8 --sequence 4 --batch 1 --model moe --json -"
mlp="1f1b $small --hidden 8 --batch 1 --model mlp --json -"
timed="1f1b $small --model timed --json -"
pairs="dualpipe $small --model timed --json -"

test_shape() {
  local rest="--hidden 8 --sequence 4 --batch 1 --steps 1 --warmup 0 --json -"
  varies "-p 2 -m 4 $rest" --schedule 1f1b zb1p
  fails 2 '--schedule' $gpt --schedule 1f1b
  varies "1f1b -m 4 $rest" --ranks 1 2
  varies "1f1b -p 2 $rest" --microbatches 4 6
  varies "interleaved -p 2 -m 4 $rest" --chunks 2 4
  refuses 'cannot be chosen in 1f1b; leave it out, or take one of: interleaved' "$gpt" --chunks 2
  compared() { grep '"measured_peak_activations"' stdout; }
  varies "interleaved -p 2 -m 8 --chunks 2 $rest" --group 2 4
  compared() { losses; }
  varies "hanayo -p 2 -m 4 $rest" --waves 1 2
  varies "chimera -p 4 -m 8 $rest" --replicas 1 2
  has_case[" --memory-limit"]=1
  passes $gpt --memory-limit 2microbatches
  fails 1 '^error: 1f1b: rank 0 needs 2 micro-batches, more than the memory limit of 1' $gpt --memory-limit 1microbatches
  refuses 'for CSV files' "$gpt" --chains 1
  refuses 'for CSV files' "$gpt" --letters old
  printf '0F0,0B0,2F0,2B0\n1F0,1B0,3F0,3B0\n' >two.csv
  fails 2 'two.csv: .*own shape' two.csv $small
}

test_model() {
  changes "$gpt" --layers 4
  varies "1f1b $small --sequence 4 --batch 1 --json -" --hidden 8 16
  changes "$gpt" --heads 2
  varies "1f1b $small --hidden 8 --batch 1 --json -" --sequence 4 8
  changes "$gpt" --vocabulary 9
  varies "1f1b $small --hidden 8 --sequence 4 --json -" --batch 1 2
  changes "$moe" --experts 4
  changes "$moe" --top-k 1
  changes "$moe" --expert-hidden 8
  changes "$moe" --capacity 0.5
  refuses 'F&B pairs; leave it out, or take .*dualpipe, dualpipev' \
    "1f1b $small --hidden 8 --sequence 4 --batch 1 --model moe --json -" --no-interleave
  changes "$gpt" --norm rms
  changes "$gpt" --tied
  changes "$gpt" --dtype float64
  varies "1f1b $small --json -" --model empty timed
}

test_training() {
  varies "1f1b -p 2 -m 4 --hidden 8 --sequence 4 --batch 1 --warmup 1 --json -" --steps 1 2
  varies "1f1b -p 2 -m 4 --hidden 8 --sequence 4 --batch 1 --steps 1 --json -" --warmup 0 2
  changes "$mlp" --optimizer sgd
  changes "$mlp" --learning-rate 0.1
  changes "$mlp --optimizer sgd" --clip 0.001
  changes "$gpt" --seed 3
  head -c 4000 /dev/zero >tokens
  changes "$gpt" --data tokens
  passes $gpt --save saved
  has_case[" --save"]=1
  changes "$gpt" --resume saved
  refuses 'requires --save$' "$gpt" --save-every 1
  changes "$gpt" --eval
}

# What has no use for forwards alone is refused beside --eval.
test_eval() {
  local option
  for option in '--save saved' --check '--calibrate costs' '--optimizer sgd' '--learning-rate 0.1' '--clip 1' \
    '--recompute full'; do
    refuses '--eval.*leave one of the two out$' "$gpt --eval" $option
  done
  refuses '--eval.*leave one of the two out$' "$moe --eval" --no-interleave
  for option in --backward --weight --recompute-time --overlapped; do
    refuses '--eval.*leave one of the two out$' "$pairs --eval" $option 0.5ms
  done
}

test_durations() {
  predicts "$timed" --forward 2ms
  predicts "$timed" --backward 3ms
  predicts "zb1p $small --model timed --json -" --weight 0.5ms
  predicts "$timed" --recompute-time 1ms
  predicts "$pairs" --overlapped 2.5ms
  refuses 'F&B pairs' "$timed" --overlapped 2.5ms
  predicts "$timed" --recompute full
  echo '{"format": "dualpipe-costs", "version": 1, "stages": [{"forward_ns": 3000000, "backward_ns": 3000000,
    "input_gradient_ns": 2000000, "weight_gradient_ns": 1000000}]}' >costs.json
  predicts "$timed" --costs costs.json
  predicts "$timed" --link-delay 2ms
  # What is injected nobody knows beforehand: it changes what is measured, and not what is predicted.
  has_case[" --inject"]=1
  passes $timed --inject rank:1:2,op:0F1:3ms,link:0-1:2ms
  fails 1 "'rank:1' is no fault, as rank:2:1.5" $timed --inject rank:1
  fails 1 'there is no rank 9 to inject a fault into' $timed --inject rank:9:2
}

test_machine() {
  fails 1 'rank 1 failed in 1F0: .*within 0.1 s' $timed --forward 2s --timeout 100ms
  has_case[" --timeout"]=1
  refuses '--model timed' "$timed" --threads-per-rank 1
  refuses '--device cuda$' "$gpt" --copy
  refuses '--device cuda$' "$gpt" --sm-partition
  has_case[" --device"]=1
  DUALPIPE_CUDA_MODULE=no-such-file.so fails 1 . $gpt --device cuda
  has_case[" --transport"]=1
  fails 1 'device cuda' $gpt --transport nccl
}

test_results() {
  local text=${gpt% --json -} option
  for option in --check --compare --profile; do
    has_case[" $option"]=1
    passes $text
    lines=$(wc -l <stdout)
    passes $text $option
    (($(wc -l <stdout) > lines)) || fail "prints no more with $option"
  done
  for option in --calibrate --trace --json; do
    has_case[" $option"]=1
    passes $text $option -
    grep -q '^{' stdout || fail "$option writes nothing"
  done
}

test_shape
test_model
test_training
test_eval
test_durations
test_machine
test_results
is_complete ''

echo "$checks commands, $failures failures"
((failures == 0))
