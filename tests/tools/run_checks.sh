# What the tests of dualpipe-run share. Sourced by them, with the paths of dualpipe-run and dualpipe-sim as $1 and $2.

dualpipe_run=$(realpath "$1")
dualpipe_sim=$(realpath "$2")
tool=$dualpipe_run
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

ranks=(--ranks 2 --microbatches 4)
short=(--steps 2 --warmup 2)
tiny=("${ranks[@]}" --hidden 8 --sequence 4 --batch 1)
small=("${tiny[@]}" "${short[@]}")
shape=(1f1b "${small[@]}")
tiny_mlp=(1f1b "${ranks[@]}" --model mlp --hidden 8 --batch 1)
mlp=("${tiny_mlp[@]}" "${short[@]}")
timed=(1f1b "${ranks[@]}" --model timed)
empty=(1f1b "${ranks[@]}" --model empty)

# holds REGEX [FILE]: the file, or stdout, contains it.
holds() { grep -qE -e "$1" "${2:-stdout}" || fail "${2:-stdout} lacks: $1"; }

# same FILE FILE
same() { cmp -s "$1" "$2" || fail "$1 and $2 differ"; }
