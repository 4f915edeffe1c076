#!/usr/bin/env bash
# What must hold on a GPU: builds, tests and measures it, and writes one JSON of all figures, with what they were taken on.
#
#   tests/gpu/run.sh [--device cuda|cpu] [--build FOLDER] [--out FILE] [--limit SECONDS] [PART...]
#   tests/gpu/run.sh --pack FOLDER
#
#   build      configures and builds into FOLDER (build/gpu); needs the CUDA toolkit, and LibTorch for CUDA: TORCH_ROOT,
#              or what cmake/FindLibTorch.cmake finds
#   unit       the tests that need a GPU: ctest -L gpu
#   parity     every schedule of the catalog x {mlp, gpt, moe} x {float32, bfloat16} on 4 virtual ranks, with --check
#   compare    prediction and measurement: tools/accuracy.sh on 4 virtual ranks with multiprocessors of their own
#   replay     replay() and a loop written by hand: dualpipe-run-bench
#   nccl       where there are two GPUs or more: a process and a rank for each, over NCCL, with --check
#   overlap    F, B and F&B of moe, with and without interleaving
#   sanitizer  compute-sanitizer, memcheck and racecheck, on a small run with --check, where the tool is found
#
# All of them unless some are named; each within SECONDS (1200). FILE (build/gpu/results.json) is written after every
# command; parts that were not asked for keep what it had. A case of a part that has passed with the same tools on the
# same device is not run again. Options of the moe that is measured: DUALPIPE_MOE_OPTIONS.
#
# --device cpu is a dry run, which tries this script, with sizes that mean nothing.
# --pack copies what is needed besides CUDA and LibTorch (CLI11, fmt, nlohmann/json, Boost.Test, Google Benchmark) from
# Debian's packages into FOLDER (8 MB), for a machine that has neither them nor a network; there DUALPIPE_HEADERS names it.
#
# Exit status: 0 all holds; 1 something does not; 2 wrong usage; 77 there is no GPU.
set -euo pipefail
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
all_parts=(build unit parity compare replay nccl overlap sanitizer)

usage() {
  sed -n '4,5s/^# *//p' "${BASH_SOURCE[0]}" >&2
  [[ -z ${1:-} ]] || echo "error: $1" >&2
  exit 2
}

# The boost headers that the tests include, and what these include; all for other compilers than this one.
boost_headers() {
  grep -rhoE --include='*.cpp' --include='*.h' '^#include <boost/[^>]+>' "$root/tests" | sort -u |
    "${CXX:-g++}" -std=c++20 -DBOOST_TEST_DYN_LINK -x c++ -M - | tr ' \\' '\n\n' | grep '^/usr/include/boost/' | sort -u
  find /usr/include/boost/config -type f
}

pack() {
  local packages=(libcli11-dev libfmt-dev libfmt9 nlohmann-json3-dev libbenchmark-dev libbenchmark1debian)
  local libraries=/usr/lib/x86_64-linux-gnu
  mkdir -p "$1"
  {
    dpkg -L "${packages[@]}" | grep -v '^/usr/share/doc'
    boost_headers
    compgen -G "$libraries/libboost_unit_test_framework.so*"
    find "$libraries/cmake" -path '*[Bb]oost*' \( -path '*/Boost*' -o -path '*/boost_headers*' -o \
      -path '*/boost_unit_test*' \) -type f
  } | while read -r file; do
    [[ ! -f $file ]] || realpath --no-symlinks --relative-to /usr "$file"
  done | sort -u | tar --create --directory /usr --files-from - | tar --extract --directory "$1"
  echo "packed $(find "$1" -type f | wc -l) files, $(du -sh "$1" | cut -f 1), into $1"
}

device=cuda
build=$root/build/gpu
out=
limit=1200
parts=()
while (($# > 0)); do
  case $1 in
    --device | --build | --out | --limit | --pack) [[ -n ${2:-} ]] || usage "$1 takes a value" ;;&
    --device) device=$2 && shift ;;
    --build) build=$2 && shift ;;
    --out) out=$2 && shift ;;
    --limit) limit=$2 && shift ;;
    --pack)
      pack "$2"
      exit
      ;;
    -*) usage "there is no option $1" ;;
    *)
      [[ " ${all_parts[*]} " == *" $1 "* ]] || usage "there is no part $1; there are ${all_parts[*]}"
      parts+=("$1")
      ;;
  esac
  shift
done
[[ $device == cuda || $device == cpu ]] || usage "--device: cuda or cpu, not $device"
[[ $limit =~ ^[1-9][0-9]*$ ]] || usage "--limit: a number of seconds, not $limit"
((${#parts[@]} > 0)) || parts=("${all_parts[@]}")

if [[ $device == cuda ]] && [[ -z $(nvidia-smi --list-gpus 2>/dev/null) ]]; then
  echo "skipped: nvidia-smi lists no GPU here; --device cpu tries the script without one"
  exit 77
fi

exec python3 "$root/tests/gpu/suite.py" --device "$device" --build "$build" --out "${out:-$build/results.json}" \
  --limit "$limit" "${parts[@]}"
