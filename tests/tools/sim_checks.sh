# What the tests of dualpipe-sim share. Sourced by them, with the path of dualpipe-sim as $1.

dualpipe_sim=$(realpath "$1")
goldens=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../goldens")
tool=$dualpipe_sim
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

# A CSV without what carries no meaning: empty cells, and how lines end.
cells() { tr -d '\r' <"$1" | sed -E 's/,+/,/g; s/^,//; s/,$//'; }

# generates GOLDEN ARGUMENT...: `convert ARGUMENT...` writes the golden's cells.
generates() {
  local golden=$1
  shift
  succeeds . convert "$@" --to csv
  diff <(cells "$golden") <(cells stdout) >/dev/null || fail "differs from $golden"
}

# holds JSON: stdout, white space aside, contains it.
holds() { [[ $(tr -d ' \n' <stdout) == *"$1"* ]] || fail "stdout lacks: $1"; }

# trace FILE ARGUMENT...: writes a trace of `simulate ARGUMENT...`.
trace() {
  local file=$1
  shift
  "$dualpipe_sim" simulate "$@" --trace "$file" >/dev/null
}

# endless CHARACTER: 4 GB of it, or what anybody reads of that.
endless() { yes "$1" 2>/dev/null | tr -d '\n' 2>/dev/null | head -c 4294967296 2>/dev/null || true; }
