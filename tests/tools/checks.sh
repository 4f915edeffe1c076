# What the tests of the command line tools share. Sourced by them; $tool is the program under test. They run in a scratch
# folder of their own.

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
exec </dev/null
# What these say of a terminal is for the tests of it alone.
export LC_ALL=C.UTF-8
unset COLUMNS NO_COLOR CLICOLOR CLICOLOR_FORCE

checks=0
failures=0

fail() {
  echo "FAILED: ${tool##*/} ${command[*]}"
  echo "  $1"
  sed -n '1,20s/^/  stdout: /p' stdout
  sed -n '1,20s/^/  stderr: /p' stderr
  failures=$((failures + 1))
}

# run ARGUMENT...: leaves stdout, stderr and $status. Reads what the caller gives as stdin; `output=FILE run …` writes
# there, `within=SECONDS run …` gives it less time than a minute.
run() {
  command=("$@")
  checks=$((checks + 1))
  status=0
  : >stdout
  timeout "${within:-60}" "$tool" "$@" >"${output:-stdout}" 2>stderr || status=$?
  # That is not ours, and this is of the machine.
  sed -i -e '/AddressSanitizer failed to allocate/d' -e '/^warning: .* they take turns/d' stderr
}

# succeeds REGEX ARGUMENT...: status 0, nothing on stderr, and the regular expression on stdout.
succeeds() {
  local regex=$1
  shift
  run "$@"
  ((status == 0)) || { fail "status $status, not 0"; return; }
  [[ ! -s stderr ]] || { fail "stderr is not empty"; return; }
  grep -qE -e "$regex" stdout || fail "stdout lacks: $regex"
}

# fails STATUS REGEX ARGUMENT...: within seconds, with one error on stderr that matches the regular expression; nothing
# on stdout, and no file half written. `after_steps=1 fails …`: the steps that were done are on stdout.
fails() {
  local expected=$1 regex=$2
  shift 2
  within=10 run "$@"
  ((status == expected)) || { fail "status $status, not $expected"; return; }
  [[ ! -s stdout || -n ${after_steps:-} ]] || { fail "stdout is not empty"; return; }
  grep -qE -e "$regex" stderr || { fail "stderr lacks: $regex"; return; }
  [[ $(head -c 7 stderr) == "error: " && $(grep -c '^error:' stderr) == 1 ]] || fail "not one block that starts with error:"
  [[ -z $(compgen -G '*.part') ]] || fail "left a file behind"
}

# until_busy PID...: until each of these, dualpipe-run, has the thread of a rank, and has had the time to run some ops.
until_busy() {
  local pid
  for pid in "$@"; do
    until grep -qxs 'rank [0-9]*' "/proc/$pid/task"/*/comm; do
      [[ -d /proc/$pid/task ]] || return 0
      sleep 0.05
    done
  done
  sleep 0.4
}
