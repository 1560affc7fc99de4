"""The tests that compare numbers, as other processors and thread counts would run them, and the whole suite in random order.

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

SUITE = ["-m", "not browser and not machine"]
CORE = (
    "tests/attention",
    "tests/method",
    "tests/test_ops.py",
    "tests/test_regression.py",
    "tests/reliability/test_processes.py",
)
# What compares floats, with each other or with stored ones.
FLOATS = (
    *CORE,
    "tests/backbones/test_families.py",
    "tests/generation/test_guidance.py",
    "tests/generation/test_measures.py",
    "tests/reference",
    "tests/reliability/test_determinism.py",
    "tests/test_observe.py",
    "tests/test_peer_presets.py",
    "tests/test_run.py",
    "tests/test_segmentor.py",
)
# Half precision, and the numbers of whole runs.
BFLOAT16 = ["-m", "not machine", "-k", "bfloat16 or half_precision"]
KERNELS = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"


@dataclass(frozen=True)
class Setting:
    """Environment variables and what is run under them."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = tuple(SUITE)
    tests: tuple[str, ...] = FLOATS


SETTINGS = {
    "one_thread": Setting({"OMP_NUM_THREADS": "1"}),
    "two_threads": Setting({"OMP_NUM_THREADS": "2"}),
    "no_vectors": Setting({"ATEN_CPU_CAPABILITY": "default"}),
    "avx2_torch": Setting({"ATEN_CPU_CAPABILITY": "avx2"}),
    "avx2": Setting({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "amx": Setting({}, tuple(BFLOAT16), ("tests",)),
    "no_amx": Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, tuple(BFLOAT16), ("tests",)),
    "random": Setting({}, (*SUITE, "--random-order", "--random-order-bucket=global", "--random-order-seed=15"), ("tests",)),
}


def run(setting: Setting, core: bool = False) -> tuple[str, str, float, bool]:
    """What torch chose, pytest's last line, seconds, and whether all passed."""
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ, **setting.environment}
    chosen = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, check=True)
    workers = max(1, len(os.sched_getaffinity(0)) // int(environment["OMP_NUM_THREADS"]))
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-n", str(workers), *setting.arguments, *(CORE if core else setting.tests)]
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
