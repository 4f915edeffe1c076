#!/usr/bin/env bash
# Installs what is missing: packages of Debian 12, for dualpipe-run LibTorch, into .torch/, and for the Python package
# what it is built and tested with, into .venv/.
#
#   tools/setup.sh tool     to build dualpipe-sim
#   tools/setup.sh run      and dualpipe-run (1.3 GB; where there is an NVIDIA GPU, 6 GB)
#   tools/setup.sh python   and the Python package (2 GB; 6 GB where there is no CUDA toolkit)
#   tools/setup.sh test     and to build and run the tests and benchmarks (the default)
#   tools/setup.sh all      and to build with Clang, and to fuzz the parsers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tool=(g++ cmake ninja-build libcli11-dev libfmt-dev nlohmann-json3-dev zlib1g-dev)
run=(python3-pip libopenmpi-dev openmpi-bin)
python=()
test=(libboost-test-dev libbenchmark-dev clang-format-14)
all=(clang libclang-rt-14-dev)

# Where the python3 in PATH is not Debian's, it has to have these itself.
[[ $(command -v python3) != "" && $(command -v python3) != /usr/bin/python3 ]] || python=(python3-dev python3-venv)

case ${1:-test} in
  tool) wanted=("${tool[@]}") ;;
  run) wanted=("${tool[@]}" "${run[@]}") ;;
  python) wanted=("${tool[@]}" "${run[@]}" ${python[@]+"${python[@]}"}) ;;
  test) wanted=("${tool[@]}" "${run[@]}" ${python[@]+"${python[@]}"} "${test[@]}") ;;
  all) wanted=("${tool[@]}" "${run[@]}" ${python[@]+"${python[@]}"} "${test[@]}" "${all[@]}") ;;
  *)
    echo "usage: tools/setup.sh [tool|run|python|test|all]" >&2
    exit 2
    ;;
esac

is_installed() {
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

as_root=()
# A script must not wait for an answer, nor fail because another one is installing just now.
apt_get() {
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

install_packages() {
  if ! command -v apt-get >/dev/null; then
    echo "setup: not a Debian system. What these Debian packages hold has to be there: $*"
    return
  fi

  local missing=() package
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    echo "setup: all packages are installed"
    return
  fi

  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "error: packages are missing, and there is no sudo. As root: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  apt_get update
  apt_get install --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# The C++ library out of PyTorch's wheel, the two of its dependencies that libtorch_cpu.so itself loads, and headers that
# the CUDA runtime's include. libtorch_cuda.so, and with it Python's part, needs all others, too: CUDA's libraries. Where
# a CUDA toolkit has most of them, three more wheels are enough.
torch=(torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 nvidia-cuda-crt==13.0.88)
torch_beside_toolkit=(nvidia-cufile==1.15.1.6 nvidia-cusparselt-cu13==0.8.0 nvidia-nvshmem-cu13==3.4.5)
torch_for_cpu="${torch[*]}"
torch_for_python="${torch[*]} ${torch_beside_toolkit[*]}"
torch_for_gpu="${torch[*]} and all that they depend on"

has_gpu() {
  [[ -e /dev/nvidia0 || $(nvidia-smi --list-gpus 2>/dev/null) == *"GPU "* ]]
}

# Whether the loader finds those of CUDA's libraries that libtorch_cuda.so wants and no wheel above has.
has_cuda_toolkit() {
  local known library
  known=$(ldconfig -p)
  for library in cublas.so.13 cublasLt.so.13 cudnn.so.9 cufft.so.12 curand.so.10 cusparse.so.12 nccl.so.2 nvJitLink.so.13; do
    [[ $known == *"lib$library "* ]] || return 1
  done
}

# Whether the python3 in PATH has a Torch that is recent enough.
has_torch_in_python() {
  python3 -c '
from importlib.metadata import version
assert tuple(map(int, version("torch").split(".")[:2])) >= (2, 7)' 2>/dev/null
}

python_version() {
  python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

# install_torch WANTED: into .torch/, unless cmake/FindLibTorch.cmake finds one without it. A complete .torch holds the
# list of what is in it. For C++ it does not matter which Python the wheel is for.
install_torch() {
  if [[ -n ${TORCH_ROOT:-} ]] || has_torch_in_python; then
    echo "setup: there is a LibTorch"
    return
  fi
  local wanted=$1 size="540 MB" without=(--no-deps) packages=("${torch[@]}")
  if [[ $wanted == "$torch_for_python" ]]; then
    packages+=("${torch_beside_toolkit[@]}")
    size="770 MB"
    has_cuda_toolkit || wanted=$torch_for_gpu
  fi
  if has_gpu; then wanted=$torch_for_gpu; fi
  if [[ $wanted == "$torch_for_gpu" ]]; then
    size="3 GB"
    without=()
  fi
  local installed
  installed=$(cat .torch/installed 2>/dev/null) || true
  if [[ $installed == "$wanted" || $installed == "$torch_for_gpu" ||
    ($wanted == "$torch_for_cpu" && $installed == "$torch_for_python") ]] &&
    [[ $1 == "$torch_for_cpu" || $(cat .torch/python 2>/dev/null) == "$(python_version)" ]]; then
    echo "setup: LibTorch is installed in .torch/"
    return
  fi
  local pip=python3
  [[ ! -x /usr/bin/python3 ]] || pip=/usr/bin/python3  # the one that has Debian's pip
  echo "setup: installing $wanted into .torch/ (a download of $size)"
  rm -rf .torch .torch.new
  "$pip" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
    ${without[@]+"${without[@]}"} --no-compile --only-binary=:all: --python-version "$(python_version)" \
    --implementation cp --target .torch.new "${packages[@]}"
  rm -rf .torch.new/bin
  python_version >.torch.new/python
  echo "$wanted" >.torch.new/installed
  mv .torch.new .torch
}

# What builds and tests the Python package, and what Torch, without its dependencies, is imported with.
python_packages=(scikit-build-core==1.1.2 nanobind==3.1.0 pytest==9.2.0 numpy==2.4.6 pandas==3.1.1 mypy==2.4.1 distributed==2026.8.0)
torch_imports=(typing-extensions==4.16.0 sympy==1.14.0 networkx==3.6.1 jinja2==3.1.6 fsspec==2026.9.0 filelock==4.3.1)

# Lightning, Hugging Face's Trainer, PEFT, and what they import: without dependencies, of which Torch is one.
frameworks=(
  accelerate==1.15.0 annotated-doc==0.0.7 anyio==4.16.0 click==8.5.1 h11==0.16.0 hf-xet==1.8.0 httpcore2==2.16.2
  httpx2==2.16.2 huggingface-hub==2.4.0 idna==3.20 lightning==2.6.6 lightning-utilities==0.15.3 markdown-it-py==4.3.0
  mdurl==0.1.2 peft==0.21.2 psutil==7.2.2 pyyaml==6.0.4 regex==2026.11.19 rich==15.0.0 safetensors==0.8.0
  shellingham==1.5.4 tokenizers==0.23.3 torchmetrics==1.9.0 tqdm==4.70.1 transformers==5.24.0 truststore==0.10.5
  typer==0.29.2
)
torchvision=(torchvision==0.26.0 pillow==13.0.0)  # of the Torch above, and no other

# A complete .venv holds the list of what is in it.
install_venv() {
  local packages=("${python_packages[@]}") without=("${frameworks[@]}") options=() installed
  if has_torch_in_python; then
    options=(--system-site-packages)
  else
    packages+=("${torch_imports[@]}")
    without+=("${torchvision[@]}")
  fi
  installed="Python $(python_version) ${options[*]-}, ${packages[*]}, ${without[*]}"
  if [[ $(cat .venv/installed 2>/dev/null) == "$installed" ]]; then
    echo "setup: the packages for Python are installed in .venv/"
    return
  fi
  echo "setup: installing ${packages[*]} and what trains with frameworks into .venv/ (a download of 110 MB)"
  rm -rf .venv
  python3 -m venv ${options[@]+"${options[@]}"} .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "${without[@]}"
  # Torch itself, which is too large to have twice.
  [[ ! -d .torch ]] || realpath .torch >"$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/dualpipe.pth"
  echo "$installed" >.venv/installed
}

install_packages "${wanted[@]}"
case ${1:-test} in
  run) install_torch "$torch_for_cpu" ;;
  python | test | all)
    install_torch "$torch_for_python"
    install_venv
    ;;
esac
echo "setup: done"
