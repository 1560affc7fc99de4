"""What a benchmark says about where and when it ran, and how it measures memory."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from goca.runs.provenance import environment

# Not below benchmarks/: a benchmark must not make the checkout differ from its commit, which every later run would write down.
# Lines worth keeping are copied from here to benchmarks/results.jsonl by hand.
RESULTS = Path("outputs", "benchmarks", "results.jsonl")


def context(threads: int) -> dict[str, Any]:
    """Machine, versions, date and commit of a measurement."""
    found = environment()
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor}, {threads} of {os.cpu_count()} cores"
    versions = {name: found["versions"][name] for name in ("python", "torch", "diffusers", "transformers")}
    return {"machine": device, "versions": versions, "date": datetime.date.today().isoformat(), "commit": found["commit"]}


def measured_apart(module: str, arguments: list[str]) -> dict[str, Any]:
    """What `python -m module arguments` prints as JSON on its last line, from a process of its own; its error ends this one."""
    child = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(child.stderr)
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def beside(found: dict[str, Any], bare: dict[str, Any]) -> dict[str, float]:
    """Time and peak memory as parts of those of the bare variant."""
    return {
        "ratio_time": round(found["seconds"] / bare["seconds"], 4),
        "ratio_memory": round(found["peak_bytes"] / bare["peak_bytes"], 4),
    }


def append(result: dict[str, Any], to: Path = RESULTS) -> None:
    """Add one line to a results file."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with open(to, "a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def reset_peak_memory() -> None:
    """Start a new peak from the memory in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the high-water mark of resident memory


def peak_bytes() -> int:
    """Peak since `reset_peak_memory`: of the GPU's allocator, or of resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
