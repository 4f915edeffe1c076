#!/usr/bin/env bash
# dualpipe-sim as its users meet it: what it prints, where, and its exit status (0 done, 1 bad input, 2 wrong usage).
# Files, good and bad, are in dualpipe_sim_files_test.sh.
#
#   tests/tools/dualpipe_sim_test.sh build/release/bin/dualpipe-sim
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/sim_checks.sh"

test_help() {
  succeeds 'table' --help
  succeeds '^[0-9]+\.[0-9]+\.[0-9]+$' --version
  for subcommand in table simulate schedules validate convert compare; do
    succeeds "dualpipe-sim $subcommand" $subcommand --help  # its examples
  done
}

test_usage() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  fails 2 'subcommand'
  fails 2 'no-such-option' --no-such-option
  fails 2 'no-such-subcommand' no-such-subcommand
  fails 2 'no-such-option' simulate dualpipe --no-such-option
  fails 2 'SCHEDULE' simulate
  fails 2 'another' simulate "${shape[@]}" another
  fails 2 '--costs.*--forward' simulate "${shape[@]}" --costs costs.json --forward 1
  fails 2 '--to' convert "${shape[@]}"
  fails 1 'xml' convert "${shape[@]}" --to xml
  fails 2 '--lower.*--strip|--strip.*--lower' convert "${shape[@]}" --to csv --lower --strip
  fails 1 'xml' table --format xml
  fails 1 'xml' schedules --format xml
  fails 1 'pairs' table --equal pairs
  fails 2 '--trace' simulate "${shape[@]}" --trace-ranks 0 1
  fails 2 '--trace' simulate "${shape[@]}" --trace-window 0 1ms
  fails 2 '--window.*--gantt.*--svg' simulate "${shape[@]}" --window 0 1ms
  fails 2 '--window.*--gantt.*--svg' simulate "${shape[@]}" --window 0 1ms --trace t
  for option in '--svg-width 800' '--title mine' --svg-memory; do
    fails 2 '--svg' simulate "${shape[@]}" $option
    fails 2 '--svg' simulate "${shape[@]}" --gantt - $option
  done
}

test_table() {
  succeeds 'DualPipeV|dualpipev' table
  for name in 1f1b zb1p dualpipe dualpipev; do
    grep -qiE "\b$name\b" stdout || fail "stdout lacks $name"
  done
  cp stdout first
  succeeds . table
  cmp -s first stdout || fail "differs from one run to the next"
}

test_table_formats() {
  for subcommand in table schedules; do
    succeeds '^\|' $subcommand --format markdown
    succeeds '^[^,]+,' $subcommand --format csv
  done
  succeeds '^[[{]' table --format json
  check_braces
  succeeds 'interleaved' table --schedules 1f1b,interleaved --chunks 2 --equal stages --ranks 4 --microbatches 8
}

# One model on the same ranks: which schedule, and does it fit?
test_table_of_a_job() {
  succeeds '^one model on 4 ranks, 8 or 16 micro-batches, 6 GB per rank$' table -p 4 -m 8,16 --memory-limit 6GB \
    -f 1,2,2,3 -b 2,4,4,6 -w 1,2,2,3 --activation-bytes 1GB --tokens 4096 --flops 1e12,1e14 --sort memory
  for text in '^\* +[a-z0-9-]+ .* yes' 'no, [0-9.]+ GB over' 'tokens/s' 'of peak' 'imbalance'; do
    grep -qE "$text" stdout || fail "stdout lacks: $text"
  done
  "$dualpipe_sim" convert gpipe --ranks 4 --microbatches 8 --to csv -o mine.csv
  succeeds ' mine.csv ' table -p 4 -m 8 --schedules 1f1b,mine.csv
  succeeds ' full ' table -p 4 -m 8 --recompute-time 1ms --activation-bytes 1GB --recompute-activation-bytes 100MB
  succeeds ' 95% ' table -p 4 -m 8 --jitter 0.1 --seeds 20
  [[ $(COLUMNS=80 "$dualpipe_sim" table | wc -L) -le 80 ]] || fail "wider than 80 columns"
  fails 2 '--jitter' table --seeds 20
  fails 1 '--activation-bytes' table --memory-limit 6GB
  fails 1 'recompute_activation_bytes' table --recompute none
  fails 1 'most' table --recompute most --recompute-time 1ms
  fails 1 'two numbers' table --flops 1e12
  fails 1 '--tokens' table --tokens 0
  fails 1 '1f1bb' table --schedules 1f1bb
  fails 1 'must be even' table --schedules dualpipe -p 3
  fails 1 'worst' table --sort worst
  fails 1 '--width' table --width 3
}

# What is opened is closed: enough to see that a JSON text is all there.
check_braces() {
  [[ $(tr -dc '{[' <stdout | wc -c) == $(tr -dc '}]' <stdout | wc -c) ]] || fail "braces do not match"
}

# Automatic schedules: planned for costs and a memory limit, which another schedule keeps or is refused.
test_automatic() {
  local plan=(--ranks 8 --microbatches 24 --forward 18522ns --backward 27423ns --weight 9337ns --latency 601ns
    --activation-bytes 1000 --weight-stash-bytes 366)
  succeeds '^7F0,7I0,' convert zb-auto "${plan[@]}" --memory-limit 8000B --to csv
  cp stdout first
  succeeds . convert zb-auto "${plan[@]}" --memory-limit 8microbatches --to csv
  cmp -s first stdout || fail "8 micro-batches of 1000 bytes are not 8000 bytes"
  succeeds . convert zb-auto "${plan[@]}" --to csv
  ! cmp -s first stdout || fail "the limit changes nothing"
  succeeds '"bubble_rate_span": 0.158[45]' simulate zb-auto "${plan[@]}" --memory-limit 8000B --json -
  [[ $(grep -oE '"peak_memory_bytes": *[0-9]+' stdout | grep -oE '[0-9]+$' | sort -n | tail -1) == 8000 ]] ||
    fail "the largest peak is not 8000 bytes"
  succeeds 'stream: completes' validate zbv-auto "${plan[@]}" --memory-limit 20KB
  fails 1 'the least limit that works is 1000 bytes$' convert zb-auto "${plan[@]}" --memory-limit 999B --to csv
  fails 1 'the least limit that works is 8 micro-batches$' validate zbv-auto "${plan[@]}" --memory-limit 7microbatches
  fails 1 'v-half.*the least limit that works is 10000 bytes$' simulate v-half "${plan[@]}" --memory-limit 9999
  fails 1 'the least limit that works is 24000 bytes$' convert gpipe "${plan[@]}" --memory-limit 9999 --to csv
  fails 1 '--memory-limit.*7.5' convert zb-auto "${plan[@]}" --memory-limit 7.5x --to csv
  fails 2 '--forward: .*does not depend on costs' convert 1f1b --ranks 4 --microbatches 8 --forward 2ms --to csv
  fails 2 '--latency: .*does not depend on costs' validate first --latency 2ms

  # A file of the zero-bubble authors, made for other costs.
  succeeds . convert zbv-auto --ranks 4 --microbatches 12 --forward 1000ns --backward 2000ns --weight 800ns --latency 50ns --to csv
  tr -d '\r' <"$goldens/zero_bubble/zbv_4ranks_12mb_f1000i1200w800c50.csv" | cmp -s - stdout || fail "not the authors' order"
}

test_schedules() {
  succeeds . schedules
  for name in gpipe 1f1b interleaved looped-bfs zb1p zb-h2 dualpipe dualpipev v-half v-min zb-auto zbv-auto; do
    grep -qE "(^|[^[:alnum:]-])$name([^[:alnum:]-]|\$)" stdout || fail "stdout lacks $name"
  done
}

# 1F1B: makespan (M + P - 1)(F + B) = 11 * 3 ms; rank r holds P - r activations.
test_simulate() {
  succeeds . simulate 1f1b --ranks 4 --microbatches 8 --forward 1 --backward 2 --weight 1 --json -
  for key in schedule ranks stages chains microbatches makespan_ns span_ns bubble_rate_makespan bubble_rate_span \
    per_rank rank busy_ns idle_ns peak_activations peak_memory_bytes parameters; do
    holds "\"$key\":"
  done
  holds '"makespan_ns":33000000'
  check_braces
  [[ $(grep -oE '"peak_activations": *[0-9]+' stdout | grep -oE '[0-9]+' | tr '\n' ' ') == "4 3 2 1 " ]] ||
    fail "peak activations are not 4 3 2 1"

  # Durations in any unit are the same.
  cp stdout first
  succeeds . simulate 1f1b --ranks 4 --microbatches 8 --forward 1000us --backward 2ms --weight 1000000ns --json -
  cmp -s first stdout || fail "units change the result"

  # DualPipe counts both directions: PP+1 activations, and the parameters of two stages, on every rank.
  succeeds . simulate dualpipe --ranks 8 --microbatches 20 --json -
  holds '"microbatches":20'
  [[ $(grep -oE '"peak_activations": *9\b' stdout | wc -l) == 8 ]] || fail "not 9 activations on all of 8 ranks"
  [[ $(grep -oE '"parameters": *2\b' stdout | wc -l) == 8 ]] || fail "not 2 stages on all of 8 ranks"
}

test_costs() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  # The same costs, written both ways, for a schedule that has all that they are of.
  local all=(dualpipe --ranks 4 --microbatches 8)
  succeeds . simulate "${all[@]}" --forward 1us --backward 3us --weight 1us --recompute-time 900ns \
    --overlapped 3500ns --activation-bytes 1KiB --weight-stash-bytes 16 --workspace-bytes 512 --bytes 4096 \
    --parameter-bytes 2MB --gradient-bytes 2MB --optimizer-bytes 8MB \
    --comm links --latency 500ns --bandwidth 50GB/s --launch 7ns --speed 1,1,0.5,1 --jitter 0.05 --seed 7 \
    --release-early --json -
  cp stdout first
  cat >costs.json <<'JSON'
{
  "format": "dualpipe-costs", "version": 1,
  "stages": [{"forward_ns": 1000, "backward_ns": 3000, "input_gradient_ns": 2000, "weight_gradient_ns": 1000,
              "recompute_ns": 900, "overlapped_ns": 3500,
              "activation_bytes": 1024, "weight_stash_bytes": 16, "message_bytes": 4096,
              "forward_workspace_bytes": 512, "backward_workspace_bytes": 512, "input_gradient_workspace_bytes": 512,
              "weight_gradient_workspace_bytes": 512,
              "parameter_bytes": 2000000, "gradient_bytes": 2000000, "optimizer_bytes": 8000000}],
  "communication": "links", "latency_ns": 500, "bandwidth_bytes_per_s": 5e10, "launch_ns": 7,
  "speed": [1, 1, 0.5, 1], "jitter": 0.05, "seed": 7, "release_early": true
}
JSON
  succeeds . simulate "${all[@]}" --costs costs.json --json -
  cmp -s first stdout || fail "a file of costs gives another result than the same options"

  # B of 2 ms and a recomputed 1 ms: 4 ranks, 8 micro-batches of F + B, and the bubble of 3 more.
  succeeds '"makespan_ns": 44000000\b' simulate "${shape[@]}" --recompute-time 1ms --json -

  # What is not of stages may be given besides the file, and wins.
  succeeds . simulate "${all[@]}" --costs costs.json --seed 8 --json -
  ! cmp -s first stdout || fail "--seed changes nothing"

  # One value for all stages, or one for each.
  succeeds . simulate "${shape[@]}" --forward 1ms,1ms,1ms,1ms --csv -
  cp stdout first
  succeeds . simulate "${shape[@]}" --forward 1 --csv -
  cmp -s first stdout || fail "a list of equal values differs from one value"
  fails 1 '3 stages.*has 4' simulate "${shape[@]}" --forward 1,2,3
  fails 1 '--backward: 3 values' simulate "${shape[@]}" --forward 1,2 --backward 1,2,3
  fails 1 '2 ranks.*has 4' simulate "${shape[@]}" --speed 1,2
  fails 1 '--weight' simulate "${shape[@]}" --weight 3
}

# A model of four parts with F of 1, 1, 2 and 4 ms, and B of twice as much. On 2 ranks it is cut before the last part,
# and M micro-batches take (M + 1)(F + B).
test_parts() {
  local parts=()
  for ms in 1 1 2 4; do
    parts+=('{"forward_ns": '${ms}e6', "backward_ns": '$((2 * ms))e6', "input_gradient_ns": '${ms}e6', "weight_gradient_ns": '${ms}e6'}')
  done
  (
    IFS=,
    echo '{"format": "dualpipe-costs", "version": 1, "parts": ['"${parts[*]}"']}'
  ) >parts.json
  succeeds '"makespan_ns": 108000000\b' simulate 1f1b --ranks 2 --microbatches 8 --costs parts.json --json -
  succeeds . simulate zb1p --ranks 4 --microbatches 8 --costs parts.json
  succeeds . simulate interleaved --ranks 4 --microbatches 8 --chunks 2 --costs parts.json
  succeeds . table --costs parts.json --ranks 4 --microbatches 8 --schedules dualpipe,1f1b
  holds 'F&B=F+B(notmeasured)'
  succeeds . table --costs parts.json --ranks 4 --microbatches 8 --schedules dualpipe,1f1b --format json
  [[ $(grep -c '"overlapped_is_assumed": true' stdout) == 1 ]] || fail "not dualpipe's F&B alone is assumed"
  succeeds 'F&B was not measured' table --costs parts.json --ranks 4 --microbatches 8 --schedules dualpipe --format csv
  succeeds . table --ranks 4 --microbatches 8 --schedules dualpipe --overlapped 3ms
  ! grep 'not measured' stdout || fail "what is given counts as measured"

  sed 's/"parts"/"cut": [1, 3], "parts"/' parts.json >cut.json
  # The first rank waits for the second, which works all the time but for the first F and the last B.
  succeeds '"makespan_ns": 171000000\b' simulate 1f1b --ranks 2 --microbatches 8 --costs cut.json --json -
  fails 1 '^error: the model is cut for 2 stages, but a chain of the schedule has 4' simulate 1f1b --ranks 4 \
    --microbatches 8 --costs cut.json
  sed 's/"parts"/"cut": [1, 2], "parts"/' parts.json >cut.json
  fails 1 '^error: cut.json: cut: it has 3 parts, but the model has 4' simulate 1f1b --ranks 2 --microbatches 8 \
    --costs cut.json
}

test_convert() {
  generates "$goldens/deepseek/dualpipe_8ranks_20mb.csv" dualpipe --ranks 8 --microbatches 20
  generates "$goldens/deepseek/dualpipev_4ranks_10mb.csv" dualpipev --ranks 4 --microbatches 10
  generates "$goldens/pytorch/1f1b_4ranks_8mb.csv" 1f1b --ranks 4 --microbatches 8
  generates "$goldens/pytorch/interleaved_1f1b_4ranks_8mb_v2.csv" interleaved --ranks 4 --microbatches 8 --chunks 2

  # CSV to JSON and back.
  succeeds . convert "$goldens/deepseek/dualpipe_4ranks_8mb.csv" --chains 2 --to json
  cp stdout schedule.json
  generates "$goldens/deepseek/dualpipe_4ranks_8mb.csv" schedule.json

  # Through a pipe, with and without communication.
  for arguments in '' --lower; do
    for format in csv json; do
      succeeds . convert 1f1b --ranks 4 --microbatches 8 --to $format $arguments
      cp stdout piped
      succeeds 'all kept' validate - <piped
      succeeds '"makespan_ns": *33000000' simulate - --json - <piped
      succeeds '^0F0,0F1,' convert - --to csv --strip <piped
    done
  done
  # Blanks before a file's first character, and a byte order mark.
  { printf '\xef\xbb\xbf'; cat schedule.json; } >marked.json
  { printf '\n\n  '; cat schedule.json; } >indented.json
  for file in marked.json indented.json; do
    generates "$goldens/deepseek/dualpipe_4ranks_8mb.csv" $file
  done
}

test_validate() {
  succeeds . validate "$goldens/pytorch/zbv_4ranks_8mb.csv"
  succeeds . validate "$goldens/pytorch/1f1b_4ranks_8mb_comms.csv"
  succeeds . validate "$goldens/deepseek/dualpipe_4ranks_8mb.csv" --chains 2

  printf '0F0,0B0\n1B0,1F0\n' >backward_first.csv
  run validate backward_first.csv
  ((status == 1)) || fail "status $status, not 1"
  grep -q '1B0' stdout stderr || fail "does not name 1B0"
}

# 1F1B, all twice as long: a start is off by what it was planned at. Rank 0's last backward is planned at 33 - 2 ms, that
# of rank 3 at 3 + 8 * 3 - 2 ms.
test_compare() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  trace planned "${shape[@]}" --activation-bytes 1MiB
  trace measured "${shape[@]}" --activation-bytes 2MiB --forward 2ms --backward 4ms --weight 2ms
  succeeds '^makespan +33 ms +66 ms +200\.00%$' compare planned measured
  grep -qE '^planned +planned$' stdout || fail "does not name the planned run"
  grep -qE '^all .* 31 ms  0B7 of rank 0$' stdout || fail "does not name the worst op"
  grep -qE '^rank 3 .* 25 ms  3B7$' stdout || fail "does not name the worst op of rank 3"
  grep -qE '^ +0 .* 4 +4 +4 MiB +8 MiB$' stdout || fail "does not have the peaks of rank 0"
  succeeds '"measured_makespan_ns": 66000000,' compare planned - --json - <measured
  check_braces
  succeeds '^makespan' compare planned measured --json difference
  grep -q '"planned_makespan_ns": 33000000,' difference || fail "difference lacks the makespan"
  succeeds '^all +0 ns +0 ns +0 ns  0F0 of rank 0$' compare planned planned
  gzip <planned >compressed
  succeeds '^all +0 ns +0 ns +0 ns  0F0 of rank 0$' compare planned compressed
  succeeds '^all +0 ns +0 ns +0 ns  0F0 of rank 0$' compare planned - <compressed
}

# Two schedules are what simulate says of each; one under two costs, too.
test_compare_schedules() {
  local shape=(--ranks 4 --microbatches 8)
  succeeds '^ +1f1b +zb1p +zb1p / 1f1b *$' compare 1f1b zb1p "${shape[@]}"
  grep -qE '^makespan +33 ms +27 ms +81\.82%' stdout || fail "does not have both makespans"
  grep -qE '^only in 1f1b: [0-9]+ B \(0B' stdout || fail "does not say what only 1f1b runs"
  grep -qE '^rank +busy 1f1b +zb1p +idle 1f1b +zb1p' stdout || fail "does not have both side by side"
  succeeds '"planned_makespan_ns": 33000000,' compare 1f1b zb1p "${shape[@]}" --json -
  check_braces
  "$dualpipe_sim" convert zb1p "${shape[@]}" --to csv >mine.csv
  "$dualpipe_sim" convert zb1p "${shape[@]}" --to json >mine.json
  succeeds '^makespan +27 ms +33 ms' compare mine.csv 1f1b  # which has the shape of the file
  succeeds '^all +0 ns +0 ns +0 ns' compare mine.csv mine.json
  succeeds '^makespan +27 ms +33 ms' compare - 1f1b <mine.csv
  # One model: each of the two stages of a rank has half of its share.
  succeeds '^makespan +33 ms +28.5 ms' compare 1f1b interleaved "${shape[@]}" --chunks 2
  grep -q 'has 4 stages, interleaved 8' stdout || fail "does not say that the stages differ"

  local entry='"forward_ns": 1000000, "backward_ns": 2000000, "input_gradient_ns": 1000000, "weight_gradient_ns": 1000000'
  echo '{"format": "dualpipe-costs", "version": 1, "parts": [{'"$entry"'}]}' >fast.json
  sed 's/000000/000001/g' fast.json >slow.json
  succeeds '^ +fast +slow +slow / fast *$' compare zb1p "${shape[@]}" --costs fast.json --costs slow.json
  succeeds '^ +1f1b, fast +zb1p, slow ' compare 1f1b zb1p "${shape[@]}" --costs fast.json --costs slow.json
  succeeds '^ +1f1b +zb1p ' compare 1f1b zb1p "${shape[@]}" --costs fast.json
  fails 2 'no more' compare zb1p "${shape[@]}" --costs fast.json --costs slow.json --costs fast.json
  fails 2 '--costs.*--forward' compare zb1p 1f1b "${shape[@]}" --costs fast.json --forward 1ms
}

test_compare_errors() {
  "$dualpipe_sim" convert 1f1b --ranks 2 --microbatches 4 --to csv >two.csv
  "$dualpipe_sim" convert 1f1b --ranks 4 --microbatches 8 --to csv >four.csv
  trace one 1f1b --ranks 2 --microbatches 4
  trace other gpipe --ranks 2 --microbatches 4
  trace larger 1f1b --ranks 4 --microbatches 8
  trace part 1f1b --ranks 2 --microbatches 4 --trace-ranks 1 1
  trace window 1f1b --ranks 2 --microbatches 4 --trace-window 4ms 9ms
  fails 2 'A is required' compare
  fails 2 'empty' compare one ''
  fails 2 'third' compare one one third
  fails 1 '^error: one: it has one run' compare one
  fails 1 '^error: no-such-file: cannot be opened: No such file' compare one no-such-file
  fails 1 'rank 0 runs 0B0 as its op 2 in one, rank 0 runs 0F2 as its op 2 in other$' compare one other
  fails 1 'one has 2 ranks, larger has 4 ranks' compare one larger
  fails 1 '^error: part: rank 0 is missing' compare one part
  fails 1 'as its op 0 in window; ' compare one window
  head -c 1000 one >cut
  fails 1 '^error: cut:[0-9]+:[0-9]+: syntax error' compare one cut
  fails 1 '^error: cut:[0-9]+:[0-9]+: syntax error' compare cut one
  fails 1 '^error: standard input:1:1: syntax error' compare one - </dev/null
  gzip <one | head -c 500 >cut
  fails 1 '^error: cut: the compressed file ends in the middle' compare one cut
  echo '{"schemaVersion": 1, "traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 7, "tid": 7}]}' >pytorch
  fails 1 '^error: pytorch: not a trace of dualpipe-sim or dualpipe-run' compare pytorch one
  "$dualpipe_sim" convert 1f1b --ranks 2 --microbatches 4 --to json >schedule
  succeeds '^makespan +15 ms +15 ms +100\.00%$' compare schedule one  # a plan and its run
  fails 1 '^error: 1f1b: it is a schedule, and one is a trace; name the schedule first' compare one 1f1b
  fails 2 '^error: --forward: it does nothing with traces' compare one one --forward 2ms
  fails 2 '^error: --ranks: it does nothing with traces' compare one one --ranks 4
  fails 1 '^error: 1f1b: a schedule is compared with another one' compare 1f1b --ranks 2 --microbatches 4
  fails 1 'two.csv has 2 ranks, four.csv 4' compare two.csv four.csv
  fails 1 'standard input.*an event of more than 64 MiB' compare one - < <(printf '{"traceEvents":[{"ph":"' && endless a)
  fails 1 '/dev/full: No space' compare one one --json /dev/full
  fails 1 'no/such/folder' compare one one --json no/such/folder/file
  output=/dev/full fails 1 'standard output: No space' compare one one
}

test_help
test_usage
test_table
test_table_formats
test_table_of_a_job
test_schedules
test_automatic
test_simulate
test_costs
test_parts
test_convert
test_validate
test_compare
test_compare_schedules
test_compare_errors

echo "$checks commands, $failures failures"
((failures == 0))
