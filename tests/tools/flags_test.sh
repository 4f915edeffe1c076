#!/usr/bin/env bash
# dualpipe-sim ignores no option: each of each subcommand has its cases here, or fails (flags.sh).
#
#   tests/tools/flags_test.sh build/release/bin/dualpipe-sim
set -euo pipefail

dualpipe_sim=$(realpath "$1")
goldens=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../goldens")
tool=$dualpipe_sim
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

# costs_of COMMAND DUAL: the options of all subcommands that take costs. DUAL is the same with dualpipe for 1f1b.
costs_of() {
  local base=$1 dual=$2
  changes "$base" --forward 3ms
  changes "$base" --backward 3ms
  changes "$dual" --weight 0.5ms
  changes "$base" --recompute-time 1ms
  changes "$dual" --overlapped 2.5ms
  refuses 'no.* pairs; .*dualpipe, dualpipev' "$base" --overlapped 2.5ms
  changes "$base" --costs costs.json
  fails 2 '^error: --costs excludes --forward$' $base --costs costs.json --forward 3ms

  changes "$base" --activation-bytes 1MiB
  changes "$base --recompute-time 1ms --activation-bytes 2MiB" --recompute-activation-bytes 1MiB
  changes "$dual" --weight-stash-bytes 1MiB
  refuses 'W apart from B' "$base" --weight-stash-bytes 1MiB
  changes "$base" --workspace-bytes 1MiB
  changes "$base" --parameter-bytes 1MiB
  changes "$base" --gradient-bytes 1MiB
  changes "$base" --optimizer-bytes 1MiB
  fails 1 "^error: --activation-bytes: '1.5' is not a whole number of bytes" $base --activation-bytes 1.5

  changes "$base --latency 300us" --comm stream
  fails 1 "^error: --comm: it is one of .*'link'; did you mean links\\?" $base --comm link
  changes "$base" --latency 300us
  changes "$base" --bytes 1MiB
  changes "$base --comm links --bytes 1MiB" --bandwidth 1GB/s
  refuses '--comm latency; add --comm links or --comm stream$' "$base --bytes 1MiB" --bandwidth 1GB/s
  refuses 'add --bytes$' "$base --comm links" --bandwidth 1GB/s
  refuses 'add --bytes$' "$base --comm links --gradient-bytes 1MiB" --bandwidth 1GB/s
  fails 1 "^error: --bandwidth: '50' has no unit; .*50GB/s.*400Gbps" $base --comm links --bytes 1 --bandwidth 50
  passes $base --comm links --bytes 1MiB --bandwidth 50GB/s
  cp stdout without
  passes $base --comm links --bytes 1MiB --bandwidth 400Gbps
  cmp -s stdout without || fail "400 Gbps are not 50 GB/s"

  changes "$base" --speed 1,1,0.5,1
  changes "$base" --launch 1ms
  changes "$base" --jitter 0.2
  changes "$base --jitter 0.2" --seed 7
  refuses 'add --jitter$' "$base" --seed 7
  changes "$dual" --release-early
  refuses 'no.* pairs' "$base" --release-early
  refuses '--comm stream.*leave it out$' "$dual --comm stream" --release-early
}

# shape_of COMMAND [ARGUMENT]...: the options of all subcommands that take a schedule.
shape_of() {
  local base=$1 rest="${*:2}"
  varies "$base 1f1b -m 8 $rest" --ranks 2 4
  varies "$base 1f1b -p 4 $rest" --microbatches 8 12
  varies "$base interleaved -p 4 -m 8 $rest" --chunks 2 4
  refuses 'cannot be chosen in 1f1b; leave it out.*interleaved, .*looped-bfs' "$base 1f1b -p 4 -m 8 $rest" --chunks 2
  # A count of ops says nothing of their order; but the rule is that of the group.
  if [[ $base == validate ]]; then
    has_case["validate --group"]=1
    passes validate interleaved -p 4 -m 16 --group 8
    fails 1 'group' validate interleaved -p 4 -m 16 --group 3
  else
    varies "$base interleaved -p 4 -m 16 --chunks 2 $rest" --group 4 8
  fi
  varies "$base hanayo -p 4 -m 8 $rest" --waves 1 2
  varies "$base chimera -p 4 -m 8 $rest" --replicas 1 2
  for option in --group --waves --replicas; do
    refuses 'cannot be chosen in 1f1b; leave it out' "$base 1f1b -p 4 -m 8 $rest" $option 2
  done
  has_case["$base --letters"]=1
  run $base old.csv $rest --letters new
  cp stdout new
  run $base old.csv $rest --letters old
  ((status == 0)) || fail "status $status, not 0"
  has_changed "$(<new)"
  refuses 'for CSV files; leave it out' "$base 1f1b -p 4 -m 8 $rest" --letters old
  refuses 'cannot be chosen in dualpipe;' "$base dualpipe -p 4 -m 8 $rest" --chunks 1
  refuses 'for CSV files; leave it out' "$base 1f1b -p 4 -m 8 $rest" --chains 1
  for option in --ranks --microbatches --chunks; do
    fails 2 '^error: dualpipev.csv: .*own shape; leave out' $base dualpipev.csv $rest $option 4
  done
}

test_shape() {
  passes convert dualpipe -p 4 -m 8 --to csv --output dualpipe.csv
  passes convert dualpipev -p 4 -m 8 --to csv --output dualpipev.csv
  printf '0F0,0B0,0W0\n1F0,1B0,1W0\n' >old.csv
  shape_of simulate
  shape_of explain --no-what-if
  shape_of validate
  shape_of convert --to json
  mends "simulate dualpipe.csv" --chains 2
  mends "explain dualpipe.csv" --chains 2
  mends "validate dualpipe.csv" --chains 2
  changes "convert dualpipe.csv --to json" --chains 2
}

# planned_of COMMAND [ARGUMENT]...: of subcommands that look at costs only where a schedule is planned for them, or a
# memory limit is to be kept.
planned_of() {
  local base="$1 1f1b -p 4 -m 8 ${*:2}" each
  for each in '--forward 3ms' '--backward 3ms' '--weight 0.5ms' '--recompute-time 1ms' '--costs costs.json' \
    '--activation-bytes 1MiB' '--recompute-activation-bytes 1MiB' '--weight-stash-bytes 1MiB' \
    '--workspace-bytes 1MiB' '--parameter-bytes 1MiB' '--gradient-bytes 1MiB' '--optimizer-bytes 1MiB' \
    '--comm links' '--latency 1ms' '--bandwidth 1GB/s' '--bytes 1MiB' '--speed 1,1,0.5,1' '--launch 1ms'; do
    refuses 'does not depend on costs; leave it out, or add --memory-limit$' "$base" $each
  done
  for each in '--activation-bytes 1MiB' '--parameter-bytes 3MiB' '--workspace-bytes 4MiB' '--bytes 3MiB'; do
    passes $base $each --memory-limit 20MiB
    fails 1 'limit' $base $each --memory-limit 2MiB
  done
  has_case["$1 --memory-limit"]=1
}

test_planned() {
  planned_of validate
  planned_of convert --to csv
  local plan="convert zb-auto -p 4 -m 12 --to csv" each
  changes "$plan" --memory-limit 5microbatches
  for each in '--forward 3ms' '--backward 5ms' '--weight 0.5ms' '--recompute-time 3ms' '--latency 1ms' \
    '--speed 1,1,0.5,1' '--costs costs.json'; do
    changes "$plan" $each
  done
  changes "$plan --memory-limit 6000B --weight-stash-bytes 366" --activation-bytes 1000
  has_case["simulate --memory-limit"]=1
  changes "simulate zb-auto -p 4 -m 12" --memory-limit 5microbatches
  fails 1 'limit' simulate gpipe -p 4 -m 8 --memory-limit 4microbatches
  has_case["explain --memory-limit"]=1
  changes "explain gpipe -p 4 -m 8" --memory-limit 8microbatches
  has_case["compare --memory-limit"]=1
  changes "compare 1f1b zb-auto -p 4 -m 12" --memory-limit 5microbatches
}

# What is taken where --chunks does not say how many is said.
test_chunks() {
  succeeds '^2 chunks per rank, as --chunks does not say' simulate interleaved -p 4 -m 8
  run simulate interleaved -p 4 -m 8 --json -
  grep -q '"2 chunks per rank, as ' stdout || fail "stdout lacks the remark"
  grep -qx 'note: 2 chunks per rank, as .*' stderr || fail "stderr lacks the remark"
  succeeds '^2 chunks per rank, as ' validate looped-bfs -p 4 -m 8
  run convert interleaved -p 4 -m 8 --to csv
  cp stdout without
  passes convert interleaved -p 4 -m 8 --chunks 2 --to csv
  cmp -s stdout without || fail "without --chunks it is not 2"
  succeeds '"remarks": \[\]' simulate interleaved -p 4 -m 8 --chunks 2 --json -
  succeeds '"remarks": \[\]' simulate 1f1b -p 4 -m 8 --json -
}

# charts_of COMMAND: the options of all subcommands that draw a run. COMMAND prints text.
charts_of() {
  local base=$1 option
  for option in --trace --svg --gantt; do changes "$base" $option -; done
  changes "$base --gantt -" --width 40
  changes "$base" --width 40
  refuses 'no columns; leave it out' "$base --json -" --width 40
  changes "$base --gantt -" --window 3ms 9ms
  refuses 'requires --gantt or --svg$' "$base" --window 3ms 9ms
  changes "$base --svg -" --svg-width 600
  changes "$base --svg -" --title other
  changes "$base --svg - --activation-bytes 1MiB" --svg-memory
  for option in '--svg-width 600' '--title other' --svg-memory; do refuses 'requires --svg$' "$base" $option; done
  changes "$base --trace -" --trace-ranks 0 1
  refuses 'requires --trace$' "$base" --trace-ranks 0 1
  changes "$base --trace -" --trace-window 3ms 9ms
  refuses 'requires --trace$' "$base" --trace-window 3ms 9ms
  fails 1 '^error: --trace-window: the end' $base --trace --trace-window 9ms 3ms
}

test_simulate() {
  local base="simulate 1f1b -p 4 -m 8"
  costs_of "$base" "simulate dualpipe -p 4 -m 8"
  changes "simulate dualpipe -p 4 -m 8 --comm links --gradient-bytes 1MiB" --bandwidth 1GB/s  # where they are reduced
  changes "$base" --json -
  changes "$base" --csv -
  charts_of "$base"
  fails 1 '^error: --trace-window: it begins at 33 ms, and the run ends at 33 ms$' $base --trace --trace-window 33 34
}

test_explain() {
  local base="explain 1f1b -p 4 -m 8"
  costs_of "$base" "explain dualpipe -p 4 -m 8"
  changes "$base" --json -
  changes "$base" --no-what-if
  charts_of "$base --no-what-if"
}

# traces_of COMMAND: the options of subcommands that take traces of other tools. Each of its files is there.
traces_of() {
  local base=$1 named="$1 $goldens/traces/GPipe_P2V1M2_rank0.json.gz $goldens/traces/GPipe_P2V1M2_rank1.json.gz"
  has_case["$base --format"]=1
  passes $named --format kineto
  fails 1 'expected a list of iterations' $named --format primus
  mends "$base rank0.json rank1.json" --range '([fb]wd) ([0-9]+)'
  fails 1 'pass alone where the order that ran is given' $base rank0.json rank1.json --range '^([fb]wd)'
  passes $base rank0.json rank1.json --range '^([fb]wd)' --schedule $goldens/traces/GPipe_P2V1M2_order.csv
  mends "$base rank0.json rank1.json" --schedule $goldens/traces/GPipe_P2V1M2_order.csv
  fails 1 'rank 0, op 2: 0B0 ran, but the schedule has 2F0' $named \
    --schedule $goldens/traces/Interleaved1F1B_P2V2M4_order.csv
  changes "$base pp_rank_0.json" --step 1
  changes "$base pp_rank_0.json" --chunks 2
  refuses 'Primus. alone do not say it; leave it out' "$named" --chunks 2
  fails 1 'there is no file of rank 0' $base $goldens/traces/GPipe_P2V1M2_rank1.json.gz
}

test_traces() {
  local rank option
  for rank in 0 1; do
    gzip -dc $goldens/traces/GPipe_P2V1M2_rank$rank.json.gz | sed 's/"Forward /"fwd /; s/"Backward /"bwd /' >rank$rank.json
  done
  echo '[{"fwd_start": [0, 1], "fwd_end": [1, 2], "bwd_start": [2, 4], "bwd_end": [4, 6]},' \
    '{"fwd_start": [10, 12], "fwd_end": [12, 14], "bwd_start": [14, 18], "bwd_end": [18, 22]}]' >pp_rank_0.json
  traces_of explain
  traces_of calibrate
  for option in '--format kineto' '--step 1' '--range F' '--schedule x.csv'; do
    refuses 'for traces; leave it out with a schedule' "explain 1f1b -p 4 -m 8" $option
  done
  refuses 'nothing with traces' "explain pp_rank_0.json" --forward 2ms
  changes "calibrate pp_rank_0.json" --output calibrated.json
  passes table --costs calibrated.json -p 4 -m 8
}

test_table() {
  local base="table --schedules 1f1b -p 4 -m 8" dual="table --schedules dualpipe -p 4 -m 8"
  costs_of "$base" "$dual"
  changes table --ranks 16
  changes table --microbatches 32
  changes "table --schedules 1f1b,interleaved -p 4 -m 8 --equal ranks" --chunks 4
  refuses 'cannot be chosen in 1f1b; leave it out' "$base" --chunks 2
  changes "table --schedules interleaved -p 4 -m 16" --group 8
  changes "table --schedules hanayo -p 4 -m 8" --waves 2
  changes "table --schedules chimera -p 4 -m 8" --replicas 2
  refuses 'cannot be chosen in 1f1b; leave it out' "$base" --waves 2
  changes table --schedules zb1p
  changes table --equal stages
  changes "$base --activation-bytes 1MiB" --memory-limit 2GB
  local both="--recompute-time 1ms --activation-bytes 2MiB --recompute-activation-bytes 1MiB"
  changes "$base $both" --recompute full
  changes "$base --jitter 0.1" --seeds 5
  refuses 'add --jitter$' "$base" --seeds 5
  changes "$base --jitter 0.1 --seeds 5" --straggler 0.8
  refuses 'add --seeds$' "$base" --straggler 0.8
  changes "$base" --tokens 4096
  changes "$base" --flops 1e12,1e15
  for sort in bubble memory none; do changes "table -p 4 -m 8 $both" --sort $sort; done
  changes table --width 60
  refuses '--format csv; leave it out$' "table --format csv" --width 60
  for format in markdown csv json; do changes table --format $format; done
}

test_partition() {
  local parts=1ms,2ms,2ms,2ms,2ms,2ms,2ms,3ms
  local base="partition 1f1b -p 4 -m 8 --forward $parts --backward 5ms"
  costs_of_parts() {
    local each
    for each in '--weight 0.5ms' '--recompute-time 1ms' '--activation-bytes 1MiB' '--workspace-bytes 1MiB' \
      '--parameter-bytes 1MiB' '--gradient-bytes 1MiB' '--optimizer-bytes 1MiB' '--latency 300us' '--bytes 1MiB' \
      '--speed 1,1,0.5,1' '--launch 1ms' '--jitter 0.2' --layout '--json -' '--output -' '--width 30'; do
      changes "$base" $each
    done
  }
  costs_of_parts
  varies "partition 1f1b -p 4 -m 8 --forward $parts" --backward 5ms 6ms
  varies "partition 1f1b -p 4 -m 8 --backward 5ms" --forward $parts 2ms,2ms,2ms,2ms,2ms,2ms,2ms,2ms
  mends "partition 1f1b -p 4 -m 8" --costs parts.json
  changes "$base --recompute-time 1ms --activation-bytes 2MiB" --recompute-activation-bytes 1MiB
  changes "partition zb1p -p 4 -m 8 --forward $parts --backward 5ms" --weight-stash-bytes 1MiB
  changes "partition dualpipe -p 4 -m 8 --forward $parts --backward 5ms" --overlapped 4ms
  changes "partition dualpipe -p 4 -m 8 --forward $parts --backward 5ms --overlapped 4ms" --release-early
  changes "$base --bytes 1MiB --latency 300us" --comm stream
  changes "$base --comm links --bytes 1MiB" --bandwidth 1GB/s
  changes "$base --jitter 0.2" --seed 7
  has_case["partition --memory-limit"]=1
  fails 1 'limit' $base --activation-bytes 1MiB --memory-limit 2MiB
  refuses 'no columns; leave it out' "$base --json -" --width 40
  varies "partition 1f1b -m 8 --forward $parts --backward 5ms" --ranks 4 2
  varies "partition 1f1b -p 4 --forward $parts --backward 5ms" --microbatches 8 12
  varies "partition interleaved -p 2 -m 8 --forward $parts --backward 5ms" --chunks 2 3
  varies "partition interleaved -p 2 -m 8 --chunks 2 --forward $parts --backward 5ms" --group 2 4
  varies "partition hanayo -p 2 -m 8 --forward $parts --backward 5ms" --waves 1 2
  varies "partition chimera -p 4 -m 8 --forward $parts --backward 5ms" --replicas 1 2
  mends "partition dualpipe.csv --forward $parts --backward 5ms" --chains 2
  has_case["partition --letters"]=1
  fails 1 'clashes' partition old.csv --forward $parts --backward 5ms --letters new
  fails 1 'there is one: give a costs file' partition 1f1b -p 4 -m 8
  fails 1 'there is nothing to cut' partition 1f1b -p 8 -m 8 --forward 1ms,2ms
  passes $base --output cut.json
  passes simulate 1f1b -p 4 -m 8 --costs cut.json
}

test_search() {
  local base="search -p 4 -m 8 --budget 0" dual="search -p 4 -m 8 --budget 0 --placement two-way" each
  for each in '--forward 3ms' '--backward 3ms' '--weight 0.5ms' '--recompute-time 1ms' '--overlapped 2.5ms' \
    '--activation-bytes 1MiB' '--weight-stash-bytes 1MiB' '--workspace-bytes 1MiB' '--parameter-bytes 1MiB' \
    '--gradient-bytes 1MiB' '--optimizer-bytes 1MiB' '--latency 300us' '--bytes 1MiB' '--costs costs.json' \
    '--speed 1,1,0.5,1' '--launch 1ms' '--memory-limit 3microbatches' '--placement v' '--objective span' \
    '--json -' '--output -' '--width 30'; do
    changes "$base" $each
  done
  changes "$base --recompute-time 1ms --activation-bytes 2MiB" --recompute-activation-bytes 1MiB
  changes "$base --latency 300us" --comm links
  changes "$base --comm links --bytes 1MiB" --bandwidth 1GB/s
  changes "$dual --overlapped 2.5ms" --release-early
  refuses 'no.* pairs' "$base --placement linear" --overlapped 2.5ms
  refuses 'no columns; leave it out' "$base --json -" --width 40
  fails 1 '^error: --placement: .*did you mean linear' $base --placement linaer
  fails 1 '^error: two-way: ranks and micro-batches must be even' search -p 3 -m 8 --placement two-way
  fails 1 'limit.*the least limit that works is 1 micro-batch$' $base --memory-limit 0.5microbatches
  varies "search -m 8 --budget 0" --ranks 4 2
  varies "search -p 4 --budget 0" --microbatches 8 12
  fails 1 '^error: --ranks is missing' search -m 8
  fails 1 '^error: --microbatches is missing' search -p 4

  local search="search -p 4 -m 8 --placement v --memory-limit 2microbatches --latency 100us --json -"
  varies "$search" --budget 100 3000
  changes "$search --budget 3000" --seed 7
  has_case["search --threads"]=1
  passes $search --budget 3000 --threads 1
  cp stdout one
  passes $search --budget 3000 --threads 3
  cmp -s stdout one || fail "the threads make a difference"
  has_case["search --time-limit"]=1
  passes $search --budget 1000000000000 --time-limit 100ms --output best.csv
  passes validate best.csv
}

test_sweep() {
  local base="sweep --schedules 1f1b -p 4 -m 8 --format csv" dual="sweep --schedules dualpipe -p 4 -m 8 --format csv"
  costs_of "$base" "$dual"
  varies "sweep --schedules 1f1b -m 8" --ranks 2 2,4
  varies "sweep --schedules 1f1b -p 4" --microbatches 8 8,12
  varies "sweep -p 4 -m 8" --schedules 1f1b gpipe
  varies "sweep --schedules interleaved -p 4 -m 16" --chunks 2 2,4
  varies "sweep --schedules interleaved -p 4 -m 16" --group 4 8
  varies "sweep --schedules hanayo -p 4 -m 8" --waves 1 2
  varies "sweep --schedules chimera -p 4 -m 8" --replicas 1 2
  refuses 'cannot be chosen in 1f1b; leave it out' "$base" --chunks 2
  changes "$base --activation-bytes 1MiB" --memory-limit 1MiB,2GB
  fails 1 'memory-limit: it needs the bytes that it limits' $base --memory-limit 2GB
  local both="--recompute-time 1ms --activation-bytes 2MiB --recompute-activation-bytes 1MiB"
  changes "$base $both" --recompute none
  fails 1 'recompute: .*must know both' $base --recompute none
  changes "$base -f 1,2,3,1,1 -b 2,4,6,2,2" --cuts 1-1-1-2,best
  changes "$base" --set latency=1ms
  fails 1 "there is nothing named 'latencie' to vary; did you mean latency" $base --set latencie=1ms
  fails 1 'not a name and values' $base --set latency
  changes "$base --jitter 0.1" --seeds 3
  refuses 'add --jitter$' "$base" --seeds 3
  changes "$base --seeds 3 --jitter 0.1" --straggler 0.5
  passes $base --seeds 3 --straggler 0.5,1
  refuses 'add --seeds$' "$base" --straggler 0.5
  changes "$base" --set speed=0.5@1
  changes "$base" --tokens 4096
  changes "sweep --schedules 1f1b -p 4 -m 8" --format csv
  changes "$base" --output sweep.csv
  has_case["sweep --threads"]=1
  passes sweep -p 4 -m 8 --threads 1
  cp stdout without
  passes sweep -p 4 -m 8 --threads 2
  cmp -s stdout without || fail "two threads print something else"
  changes "sweep --schedules 1f1b -p 4 -m 8,12" --shard 2/2
  refuses 'CSV does not say what it is of' "sweep -p 4 -m 8 --format csv" --shard 2/2
  refuses 'give the --output' "sweep -p 4 -m 8" --resume
  fails 2 '^error: --resume: CSV does not say' $base --output resumed.csv --resume
  has_case["sweep --progress"]=1
  run sweep --schedules 1f1b -p 4 -m 8 --progress always
  grep -q '^1 of 1 points, 100 %' stderr || fail "says nothing of its progress"
  passes sweep --schedules 1f1b -p 4 -m 8 --progress never
  mends "sweep --schedules 1f1b --global-batch 64 --costs model.json" --gpus 16
  mends "sweep --schedules 1f1b --gpus 16 --costs model.json" --global-batch 64
  fails 2 '^error: --microbatches: how many there are follows' sweep --gpus 16 --global-batch 64 -m 8 --costs model.json
  fails 2 '^error: --global-batch: it is of a step on --gpus' sweep -p 4 -m 8 --global-batch 8
}

test_estimate() {
  local base="estimate --layers 4 --hidden 1024 --heads 16 --sequence 2048" each
  echo '{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}' >config.json
  mends "estimate --sequence 2048" --config config.json
  fails 2 '^error: --config excludes --layers$' estimate --config config.json --layers 3 --sequence 64
  varies "estimate --hidden 1024 --heads 16 --sequence 2048" --layers 4 5
  varies "estimate --layers 4 --heads 16 --sequence 2048" --hidden 1024 2048
  varies "estimate --layers 4 --hidden 1024 --sequence 2048" --heads 16 8
  varies "estimate --layers 4 --hidden 1024 --heads 16" --sequence 2048 4096
  for each in '--style gpt' '--kv-heads 4' '--head-size 128' '--intermediate 4096' '--vocabulary 32000' '--microbatch 2' \
    '--tensor-parallel 2' '--context-parallel 2' '--data-parallel 2' '--attention unfused' '--recompute full' '--gpu a100' \
    '--dtype fp8' '--mfu 0.4' '--matmul-efficiency 0.5' '--memory-efficiency 0.5' --list-gpus '--width 60' '--output -'; do
    changes "$base" $each
  done
  echo '{"model_type": "mixtral", "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16,' \
    '"num_hidden_layers": 4, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}' >config.json
  changes "estimate --config config.json --sequence 2048 --data-parallel 4" --expert-parallel 4
  changes "$base --output -" --calibrated costs.json
  for each in '--matmul-efficiency 0.5' '--memory-efficiency 0.5'; do refuses 'nothing with --mfu' "$base --mfu 0.4" $each; done
  passes $base --output model.json
}

test_reports() {
  passes sweep --schedules 1f1b,zb1p -p 4 -m 8,12 --set latency=0,1ms --activation-bytes 1MiB --output some.jsonl
  changes "merge some.jsonl" --format csv
  changes "merge some.jsonl" --output merged.jsonl
  changes "report some.jsonl" --html -
  changes "report some.jsonl" --svg -
  changes "report some.jsonl --svg -" --plot pareto
  has_case["report --axis"]=1
  passes report some.jsonl --svg - --plot sensitivity --axis latency
  grep -q "What latency changes" stdout || fail "draws another axis"
  refuses 'requires --svg$' "report some.jsonl" --plot pareto
  refuses 'of --plot sensitivity; add it' "report some.jsonl --svg -" --axis latency
  fails 1 'launch does not vary in this sweep; what does: latency' report some.jsonl --svg - --plot sensitivity --axis launch
  changes "report some.jsonl --html -" --charts 1
  refuses 'requires --html$' "report some.jsonl" --charts 1
  changes "report some.jsonl" --top 2
  changes "report some.jsonl" --width 40
  fails 1 'no file of a sweep' report config.json
}

test_others() {
  for format in markdown csv; do changes schedules --format $format; done

  printf '%s\n' "$(for i in {0..29}; do printf '0B%d,' $i; done)0F0" >many.csv
  has_case["validate --all"]=1
  fails 1 'and [0-9]+ more' validate many.csv
  fails 1 '0F29' validate many.csv --all
  ! grep -q 'more' stderr || fail "not all"

  varies "convert 1f1b -p 4 -m 8" --to csv json
  changes "convert 1f1b -p 4 -m 8 --to csv" --output converted.csv
  changes "convert 1f1b -p 4 -m 8 --to csv" --lower
  changes "convert $goldens/pytorch/1f1b_4ranks_8mb_comms.csv --to csv" --strip
  refuses 'no communication; leave it out$' "convert 1f1b -p 4 -m 8 --to csv" --strip
  fails 2 '^error: --lower excludes --strip$' convert 1f1b -p 4 -m 8 --to csv --lower --strip

  test_compare
}

# A schedule, and the traces of its run: all costs, and what is to be known of traces.
test_compare_run() {
  local named="compare gpipe $goldens/traces/GPipe_P2V1M2_rank0.json.gz $goldens/traces/GPipe_P2V1M2_rank1.json.gz" option
  has_case["compare --format"]=1
  passes $named --format kineto
  fails 1 'expected a list of iterations' $named --format primus
  mends "compare gpipe rank0.json rank1.json" --range '([fb]wd) ([0-9]+)'
  mends "compare gpipe rank0.json rank1.json" --schedule $goldens/traces/GPipe_P2V1M2_order.csv
  changes "compare gpipe pp_rank_0.json" --step 1
  changes "compare interleaved pp_rank_0.json" --chunks 2
  changes "$named" --costs costs.json
  changes "$named" --forward 3ms
  for option in '--format kineto' '--step 1' '--range F' '--schedule x.csv'; do
    refuses 'leave it out' "compare trace trace" $option
    refuses 'leave it out' "compare 1f1b gpipe -p 4 -m 8" $option
  done
  fails 2 'one is enough' $named --costs costs.json --costs costs.json
  fails 2 'more files are of a run' compare 1f1b gpipe zb1p -p 4 -m 8
  fails 1 'name the schedule first' compare trace gpipe
}

# Two schedules have all costs. Traces have none that could be given, nor a shape.
test_compare() {
  local base="compare 1f1b gpipe -p 4 -m 8"
  costs_of "$base" "compare dualpipe dualpipev -p 4 -m 8"
  varies "compare 1f1b gpipe -m 8" --ranks 2 4
  varies "compare 1f1b gpipe -p 4" --microbatches 8 12
  varies "compare 1f1b interleaved -p 4 -m 16" --chunks 2 4
  varies "compare 1f1b interleaved -p 4 -m 16 --chunks 2" --group 4 8
  varies "compare 1f1b hanayo -p 4 -m 8" --waves 1 2
  varies "compare 1f1b chimera -p 4 -m 8" --replicas 1 2
  refuses 'cannot be chosen in 1f1b, gpipe; leave it out' "$base" --chunks 2
  mends "compare dualpipe.csv dualpipe.csv" --chains 2
  has_case["compare --letters"]=1
  fails 1 'clashes' compare old.csv old.csv --letters new
  passes simulate 1f1b -p 4 -m 8 --trace trace
  changes "compare trace trace" --json -
  refuses 'nothing with traces' "compare trace trace" --forward 2ms
  test_compare_run
}

cat >costs.json <<'JSON'
{"format": "dualpipe-costs", "version": 1, "stages": [{"forward_ns": 1000, "backward_ns": 3000,
  "input_gradient_ns": 2000, "weight_gradient_ns": 1000}]}
JSON
cat >parts.json <<'JSON'
{"format": "dualpipe-costs", "version": 1, "parts": [{"count": 9, "forward_ns": 1000, "backward_ns": 3000,
  "input_gradient_ns": 2000, "weight_gradient_ns": 1000}]}
JSON
test_shape
test_chunks
test_planned
test_simulate
test_explain
test_traces
test_table
test_search
test_estimate
test_sweep
test_reports
test_partition
test_others
for subcommand in $("$tool" --help | sed -n '/^Subcommands/,/^$/s/^  \([a-z]\+\) .*/\1/p'); do
  [[ $subcommand == help ]] || is_complete $subcommand
done
((${#has_case[@]} > 60)) || fail "the subcommands are not found in --help"

echo "$checks commands, $failures failures"
((failures == 0))
