"""The part of the suite that compares numbers, as other processors, thread counts and orders would run it.

python -m tests.machines                    every setting
python -m tests.machines avx2 random
python -m tests.machines --core avx2        the core alone: attention, method, whole runs (continuous integration)

Environment variables make torch, oneDNN and MKL choose the kernels of another processor; what this one lacks cannot be emulated
(on a processor without AMX, `amx` and `no_amx` are the same). Prints a table; exit code 1 where a test failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

# Nothing here depends on how floats are summed.
LEFT_OUT = (
    "compare",
    "data",
    "prompts",
    "runs",
    "scenes",
    "test_app.py",
    "test_config.py",
    "test_dashboard.py",
    "test_loggers.py",
)
SUITE = ["-m", "not browser and not machine", *(f"--ignore=tests/{name}" for name in LEFT_OUT)]
CORE = (
    "tests/attention",
    "tests/method",
    "tests/test_ops.py",
    "tests/test_regression.py",
    "tests/reliability/test_processes.py",
)
# Half precision, and the numbers of whole runs.
BFLOAT16 = ["-m", "not machine", "-k", "bfloat16 or half_precision"]
KERNELS = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"


@dataclass(frozen=True)
class Setting:
    """Environment variables and what is run under them."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = tuple(SUITE)


SETTINGS = {
    "one_thread": Setting({"OMP_NUM_THREADS": "1"}),
    "two_threads": Setting({"OMP_NUM_THREADS": "2"}),
    "no_vectors": Setting({"ATEN_CPU_CAPABILITY": "default"}),
    "avx2_torch": Setting({"ATEN_CPU_CAPABILITY": "avx2"}),
    "avx2": Setting({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "amx": Setting({}, tuple(BFLOAT16)),
    "no_amx": Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, tuple(BFLOAT16)),
    "random": Setting({}, (*SUITE, "--random-order", "--random-order-bucket=global", "--random-order-seed=15")),
}


def run(setting: Setting, core: bool = False) -> tuple[str, str, float, bool]:
    """What torch chose, pytest's last line, seconds, and whether all passed."""
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ, **setting.environment}
    chosen = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, check=True)
    workers = max(1, len(os.sched_getaffinity(0)) // int(environment["OMP_NUM_THREADS"]))
    began = time.perf_counter()
    arguments = [argument for argument in setting.arguments if argument != "tests"]
    command = [sys.executable, "-m", "pytest", "-n", str(workers), *arguments, *(CORE if core else ("tests",))]
    tests = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if tests.returncode:
        print(tests.stdout, flush=True)
    capability, threads = chosen.stdout.split()[-2:]
    return f"{capability}, {threads} threads", tests.stdout.splitlines()[-1], time.perf_counter() - began, tests.returncode == 0


def main(arguments: list[str]) -> int:
    core, names = "--core" in arguments, [name for name in arguments if name != "--core"]
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        print(f"error: no setting {', '.join(unknown)}; there are {', '.join(SETTINGS)}", file=sys.stderr)
        return 2
    table = Table("setting", "environment", "kernels", "tests", "seconds", title="Machines")
    failed = False
    for name in names or SETTINGS:
        print(f"{name} ...", flush=True)
        kernels, tests, seconds, passed = run(SETTINGS[name], core)
        failed |= not passed
        variables = " ".join(f"{key}={value}" for key, value in SETTINGS[name].environment.items())
        table.add_row(name, variables, kernels, tests.rpartition(" in ")[0] or tests, f"{seconds:.0f}")
    Console(width=160).print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
