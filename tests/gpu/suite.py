"""The parts of tests/gpu/run.sh, which says what they are; started by it."""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


# Starts the processes of a command, as torchrun would: bash -c LAUNCH launch COUNT COMMAND. Fails if one does.
LAUNCH = """
export WORLD_SIZE=$1 MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + RANDOM % 10000))
processes=()
for ((rank = 0; rank < WORLD_SIZE; ++rank)); do
  RANK=$rank LOCAL_RANK=$rank bash -c "$2" & processes+=($!)
done
status=0
for process in "${processes[@]}"; do wait "$process" || status=$?; done
exit $status
"""


class OutOfTime(Exception):
    """The part has used up its time."""


class Skip(Exception):
    """The part cannot run here; says why."""


class Results:
    """What is in the file: by part its cases, by case its command, figures and outcome."""

    def __init__(self, path, about):
        self.path = path
        self.about = about
        self.parts = {}
        try:
            before = json.loads(path.read_text())
            if before["about"]["device"] == about["device"]:
                self.parts = before["parts"]
        except (OSError, ValueError, KeyError):
            pass  # none, or of something else

    def begin(self, part, tools):
        """Keeps the cases that have passed with the same tools."""
        before = self.parts.get(part, {})
        kept = before.get("cases", {}) if before.get("tools_sha256") == tools else {}
        self.parts[part] = {
            "status": FAILED,
            "date": now(),
            "tools_sha256": tools,
            "cases": {name: case for name, case in kept.items() if case["status"] == PASSED},
        }
        return self.parts[part]

    def write(self):
        held = {name: part["requirement"] for name, part in self.parts.items() if "requirement" in part}
        contents = {"about": self.about, "requirements": held, "parts": self.parts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".part")
        unfinished.write_text(json.dumps(contents, indent=1) + "\n")
        unfinished.replace(self.path)


class Suite:
    def __init__(self, options):
        self.options = options
        self.is_dry = options.device == "cpu"
        self.build = pathlib.Path(options.build).resolve()
        self.run_tool = self.build / "bin" / "dualpipe-run"
        self.bench_tool = self.build / "bin" / "dualpipe-run-bench"
        self.sim_tool = self.build / "bin" / "dualpipe-sim"
        self.scratch = self.build / "gpu-suite"
        self.results = Results(pathlib.Path(options.out).resolve(), about(self.is_dry, self.build))
        self.deadline = 0.0
        self.part = {}
        self._help = None

    # --- running

    def run_part(self, name):
        """True unless it has failed."""
        print(f"== {name}", flush=True)
        self.deadline = time.monotonic() + self.options.limit
        self.part = self.results.begin(name, self.tools() if name != "build" else "")
        begin = time.monotonic()
        try:
            if name != "build" and not self.run_tool.exists():
                raise RuntimeError(f"there is no {self.run_tool}; the part build makes it")
            self.scratch.mkdir(parents=True, exist_ok=True)
            getattr(self, f"part_{name}")()
            failed = [case for case, of in self.part["cases"].items() if of["status"] != PASSED]
            self.part["status"] = FAILED if failed or self.part.get("requirement", {}).get("holds") is False else PASSED
        except Skip as skip:
            self.part.update(status=SKIPPED, why=str(skip))
        except OutOfTime:
            self.part["why"] = f"not done within {self.options.limit} s"
        except Exception as error:  # pylint: disable=broad-except  # whatever it is, it stands in the results
            self.part["why"] = f"{type(error).__name__}: {error}"
        self.part["seconds"] = round(time.monotonic() - begin, 1)
        self.results.write()
        print(f"   {self.part['status']}" + (f": {self.part['why']}" if "why" in self.part else ""), flush=True)
        requirement = self.part.get("requirement")
        if requirement:
            print(f"   {requirement['text']}: {requirement['reached']}", flush=True)
        return self.part["status"] != FAILED

    def tools(self):
        if not self.run_tool.exists():
            return ""
        digest = hashlib.sha256(self.run_tool.read_bytes())
        for module in sorted(self.build.rglob("libdualpipe_cuda.so")):
            digest.update(module.read_bytes())
        return digest.hexdigest()

    def case(self, name, command):
        """Runs a command, unless this case has passed before. Returns the case, to which figures may be added."""
        command = [str(word) for word in command]
        before = self.part["cases"].get(name)
        if before and before["command"] == shlex.join(command):
            return before
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime
        begin = time.monotonic()
        status, output = execute(command, left)
        case = {
            "status": PASSED if status == 0 else FAILED,
            "command": shlex.join(command),
            "exit_status": status,
            "seconds": round(time.monotonic() - begin, 2),
        }
        if case["status"] == FAILED:
            case["output"] = output[-3000:]
            print(f"   {name}: failed ({status})\n{output[-600:]}", flush=True)
        self.part["cases"][name] = case
        self.results.write()
        if status == "timeout":
            raise OutOfTime
        return case

    def require(self, text, reached, holds):
        """What the part shows of a requirement; a dry run shows nothing."""
        self.part["requirement"] = {"text": text, "reached": reached, "holds": None if self.is_dry else holds}

    def device_options(self, *others):
        return [] if self.is_dry else ["--device", "cuda", *others]

    def knows(self, word):
        if self._help is None:
            self._help = subprocess.run([self.run_tool, "--help"], capture_output=True, text=True, check=True).stdout
        return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", self._help) is not None

    def needs(self, *words):
        missing = [word for word in words if not self.knows(word)]
        if missing:
            raise (Skip if self.is_dry else RuntimeError)(f"this dualpipe-run knows no {', '.join(missing)}")

    # --- the parts

    def part_build(self):
        configure = ["cmake", "-S", ROOT, "-B", self.build, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_UNITY_BUILD=ON"]
        configure += [f"-DDUALPIPE_BUILD_{part}=ON" for part in ("EXEC", "TESTS", "BENCHMARKS")]
        if not self.is_dry:
            configure += ["-DDUALPIPE_CUDA=ON"]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        packed = os.environ.get("DUALPIPE_HEADERS")
        if packed:
            configure += packages_in(pathlib.Path(packed).resolve())
        self.case("configure", configure)
        if self.part["cases"]["configure"]["status"] == PASSED:
            self.case("build", ["cmake", "--build", self.build, "--parallel", os.cpu_count() or 1])
        self.results.about = about(self.is_dry, self.build)

    def part_unit(self):
        if self.is_dry:
            raise Skip("these tests need a GPU")
        report = self.scratch / "unit.xml"
        self.case("ctest", ["ctest", "--test-dir", self.build, "-L", "gpu", "--no-tests=error", "--output-on-failure",
                            "--output-junit", report])

    def part_parity(self):
        ranks, micro_batches, hidden, schedules = 4, 8, 128, self.catalog()
        if self.is_dry:
            ranks, micro_batches, hidden, schedules = 2, 4, 64, ["1f1b", "dualpipe"]
        for model in ("mlp", "gpt", "moe"):
            if model == "moe" and self.is_dry and not self.knows("moe"):
                continue
            for schedule in schedules:
                for dtype in ("float32", "bfloat16"):
                    self.parity_case(f"{schedule} {model} {dtype}", [
                        "--schedule", schedule, "--ranks", ranks, "--microbatches", micro_batches, "--model", model,
                        "--hidden", hidden, "--dtype", dtype, "--optimizer", "sgd", "--warmup", 1, "--steps", 2,
                        *(["--layers", 2 * ranks] if not self.is_dry else []), *self.device_options()])
        cases = self.part["cases"].values()
        passed = sum(case["status"] == PASSED for case in cases)
        self.require("parity of every schedule x {mlp, gpt, moe} on 4 virtual ranks, float32 and bfloat16",
                     f"{passed} of {len(cases)}", passed == len(cases))

    def parity_case(self, name, options):
        report = self.scratch / "parity.json"
        report.unlink(missing_ok=True)
        case = self.case(name, [self.run_tool, *options, "--check", "--json", report])
        if "figures" in case or not report.exists():
            return
        found = json.loads(report.read_text())
        keys = ("check_passed", "tolerance", "losses_bitwise_equal", "max_loss_difference", "gradients_bitwise_equal",
                "max_gradient_relative_l2", "max_gradient_relative_l2_from_float32", "max_gradient_cosine_difference")
        case["figures"] = {key: found[key] for key in keys if key in found}

    def catalog(self):
        text = subprocess.run([self.sim_tool, "schedules", "--format", "csv"], capture_output=True, text=True,
                              check=True).stdout
        return [line.split(",")[0] for line in text.splitlines()[1:]]

    def part_compare(self):
        options = ["--model", "gpt", "--ranks", 4, "--layers", 8, "--hidden", 1024, "--heads", 16, "--sequence", 512,
                   "--batch", 4, "--vocabulary", 8192, *self.device_options("--sm-partition")]
        script = ["--rounds", 3]
        if self.is_dry:
            options = ["--model", "gpt", "--ranks", 2, "--hidden", 16]
            script = ["--rounds", 1, "--quick", "--time-limit", 1000, "--memory-limit", 1000]
        else:
            script += ["--time-limit", 3, "--memory-limit", 2]
        report = self.scratch / "accuracy.json"
        report.unlink(missing_ok=True)
        case = self.case("accuracy", [ROOT / "tools" / "accuracy.sh", *script, "--run", self.run_tool, "--of",
                                      "makespan", "--json", report, "--", *options])
        if "figures" not in case and report.exists():
            case["figures"] = json.loads(report.read_text())
        figures = case.get("figures", [])
        if not figures:
            return
        in_time = max(abs(each["time_error_percent"]) for each in figures)
        in_memory = max(abs(each["memory_error_percent"]) for each in figures)
        self.require("predicted makespan within 3 %, peak memory within 2 %",
                     f"{in_time:.2f} % and {in_memory:.2f} %", in_time <= 3 and in_memory <= 2)

    def part_replay(self):
        report = self.scratch / "bench.json"
        report.unlink(missing_ok=True)
        case = self.case("dualpipe-run-bench", [
            self.bench_tool, *self.device_options(), f"--benchmark_filter={'^empty/1f1b' if self.is_dry else '^step/'}",
            f"--benchmark_out={report}", "--benchmark_out_format=json"])
        if "figures" not in case and report.exists():
            found = json.loads(report.read_text())["benchmarks"]
            keys = ("ratio", "replay_ms", "loop_ms", "ns_per_op")
            case["figures"] = {each["name"]: {key: each[key] for key in keys if key in each} for each in found}
        ratios = [each["ratio"] for each in case.get("figures", {}).values() if "ratio" in each]
        if ratios:
            self.require("replay takes at most 1.02 times a loop written by hand", f"{max(ratios):.4f}",
                         max(ratios) <= 1.02)

    def part_nccl(self):
        gpus = 0 if self.is_dry else gpu_count()
        if gpus < 2:
            raise Skip(f"it needs two GPUs, and there is {'one' if gpus == 1 else 'none'}")
        ranks = 4 if gpus >= 4 else 2
        for model in ("mlp", "gpt"):
            for schedule in self.catalog():
                run = shlex.join(str(word) for word in [
                    self.run_tool, "--schedule", schedule, "--ranks", ranks, "--microbatches", 2 * ranks, "--model",
                    model, "--hidden", 128, "--layers", 2 * ranks, "--optimizer", "sgd", "--warmup", 1, "--steps", 2,
                    "--device", "cuda", "--transport", "nccl", "--check"])
                self.case(f"{schedule} {model}", ["bash", "-c", LAUNCH, "launch", ranks, run])
        cases = self.part["cases"].values()
        passed = sum(case["status"] == PASSED for case in cases)
        self.require(f"parity over NCCL on {ranks} GPUs", f"{passed} of {len(cases)}", passed == len(cases))

    def part_overlap(self):
        self.needs("moe", "--no-interleave")
        sizes = ["--hidden", 2048, "--heads", 16, "--sequence", 1024, "--batch", 4, "--dtype", "bfloat16"]
        if self.is_dry:
            sizes = ["--hidden", 16]
        sizes = shlex.split(os.environ.get("DUALPIPE_MOE_OPTIONS", "")) or sizes
        ratios = {}
        for name, options in (("interleaved", []), ("not interleaved", ["--no-interleave"])):
            costs = self.scratch / "overlap.json"
            costs.unlink(missing_ok=True)
            # One rank, which has the whole device, and two stages.
            case = self.case(name, [self.run_tool, "--schedule", "dualpipev", "--ranks", 1, "--microbatches", 8,
                                    "--model", "moe", *sizes, "--warmup", 4 if self.is_dry else 9, "--steps", 5,
                                    *self.device_options(), *options, "--calibrate", costs])
            if "figures" not in case and costs.exists():
                case["figures"] = overlap_figures(json.loads(costs.read_text()))
            if "figures" in case:
                ratios[name] = case["figures"]["overlapped_of_sum"]
        if len(ratios) == 2:
            self.require("F&B of moe takes at most 0.80 times F + B",
                         ", ".join(f"{ratio:.3f} {name}" for name, ratio in ratios.items()),
                         ratios["interleaved"] <= 0.80)

    def part_sanitizer(self):
        candidates = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
        tool = next((each for each in candidates if each and pathlib.Path(each).exists()), None)
        if self.is_dry:
            tool = "env"  # runs what it is given
        elif tool is None:
            raise Skip("there is no compute-sanitizer")
        run = [self.run_tool, "--schedule", "dualpipe", "--ranks", 2, "--microbatches", 4, "--model", "gpt", "--hidden",
               32, "--sequence", 8, "--warmup", 0, "--steps", 1, "--check", "--timeout", "600s", *self.device_options()]
        for check in ("memcheck", "racecheck"):
            options = [] if self.is_dry else ["--tool", check, "--error-exitcode", 9]
            self.case(check, [tool, *options, *run])
        self.require("compute-sanitizer finds nothing", ", ".join(
            f"{name} {case['status']}" for name, case in self.part["cases"].items()),
            all(case["status"] == PASSED for case in self.part["cases"].values()))


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def execute(command, limit):
    """Exit status, or "timeout", and what was printed. Nothing that it has started outlives it."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=limit)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return "timeout", output
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def first_line(*command):
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
        return found[0].strip() if found else None
    except (OSError, subprocess.SubprocessError):
        return None


def torch_version(build):
    """Of the LibTorch that was built with."""
    try:
        cache = (build / "CMakeCache.txt").read_text()
        include = pathlib.Path(re.search(r"^LibTorch_INCLUDE_DIR:\w+=(.*)$", cache, re.MULTILINE)[1])
        for header in ("torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"):
            if (include / header).exists():
                text = (include / header).read_text()
                return ".".join(re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))
    except (OSError, TypeError):
        pass
    return None


def gpu_count():
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    return listed.count("GPU ")


def about(is_dry, build):
    """What the figures were taken on."""
    asked = "name,driver_version,memory.total,compute_cap"
    gpu = None if is_dry else first_line("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")
    fields = [field.strip() for field in gpu.split(",")] if gpu else []
    return {
        "device": fields[0] if fields else f"none: a dry run on {platform.machine()}",
        **dict(zip(("driver", "memory", "compute_capability"), fields[1:])),
        "date": now(),
        "system": platform.platform(),
        "commit": first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "compiler": first_line(os.environ.get("CXX", "c++"), "--version"),
        "cmake": first_line("cmake", "--version"),
        "torch": torch_version(build),
        "cuda": first_line("sh", "-c", "nvcc --version | grep release"),
        "python": platform.python_version(),
    }


def packages_in(folder):
    """Where CMake finds what run.sh --pack has copied."""
    options = [f"-DCMAKE_PREFIX_PATH={folder}"]
    for package, file in (("CLI11", "CLI11Config"), ("fmt", "fmt-config"), ("nlohmann_json", "nlohmann_jsonConfig"),
                          ("Boost", "BoostConfig"), ("benchmark", "benchmarkConfig")):
        found = sorted(folder.rglob(f"{file}.cmake"))
        if not found:
            raise RuntimeError(f"{folder} has no {file}.cmake; tests/gpu/run.sh --pack makes such a folder")
        options.append(f"-D{package}_DIR={found[0].parent}")
    return options


def overlap_figures(costs):
    """Means over the parts of the model, in milliseconds."""
    parts = costs["parts"]
    mean = {key: sum(part[f"{key}_ns"] for part in parts) / len(parts) / 1e6 for key in ("forward", "backward")}
    pairs = [part["overlapped_ns"] / 1e6 for part in parts if part.get("overlapped_ns")]
    overlapped = sum(pairs) / len(pairs)
    return {**{f"{key}_ms": value for key, value in mean.items()}, "overlapped_ms": overlapped,
            "overlapped_of_sum": overlapped / (mean["forward"] + mean["backward"])}


def main():
    parser = argparse.ArgumentParser()
    for name in ("--device", "--build", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("parts", nargs="+")
    options = parser.parse_args()
    try:
        suite = Suite(options)
        passed = [suite.run_part(name) for name in options.parts]
    except KeyboardInterrupt:
        print("error: interrupted; the results hold what was done", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)  # the results could not be written
        return 1
    print(f"results: {suite.results.path}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
