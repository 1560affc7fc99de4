"""How far the numbers of the default job and of every bundled backbone move between processors, thread counts and precisions.

python -m benchmarks.machines                       every bundled backbone, 100 images
python -m benchmarks.machines limit=40 model=scenes_unet

Each setting runs in a process of its own, which chooses the kernels that another processor would (see tests/machines.py). For
each backbone it prints the reported numbers in the first setting and the largest difference from it, and appends one line to
outputs/benchmarks/machines.jsonl. Differences in bfloat16 are from bfloat16 with AMX.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine

BACKBONES = ("scenes_unet", "scenes_unet_small", "scenes_unet_tiny", "scenes_dit", "scenes_mmdit")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "torch without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 throughout": AVX2,
}
BFLOAT16 = {"bfloat16, AMX": {}, "bfloat16, no AMX": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "bfloat16, AVX2": AVX2}
# The first of the arguments: model and dtype of each run, as JSON; the others: overrides of all.
RUN = """
import json, sys, tempfile
from pathlib import Path
from goca import config
from goca.runs.evaluation import evaluate
config.quiet()
out = []
for model, dtype in json.loads(sys.argv[1]):
    with tempfile.TemporaryDirectory() as folder:
        evaluate(config.compose([f"model={model}", f"model.dtype={dtype}", *sys.argv[2:]]), Path(folder))
        out.append(json.loads(Path(folder, "summary.json").read_text()))
print(json.dumps(out))
"""
JOB = ("logger=none", "figures.count=0", "figures.gallery=0", "model.device=cpu", "trainer.enable_progress_bar=false")


def summaries(environment: dict[str, str], backbones: Sequence[str], dtype: str, overrides: list[str]) -> list[dict[str, Any]]:
    """The summary of each backbone's run, in one process that has these variables set."""
    command = [sys.executable, "-c", RUN, json.dumps([(backbone, dtype) for backbone in backbones]), *JOB, *overrides]
    variables = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ, **environment}
    ran = subprocess.run(command, env=variables, check=False, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    found: list[dict[str, Any]] = json.loads(ran.stdout.splitlines()[-1])
    return found


def reported(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of a run that a person quotes, by group: value of the group's first, or every one of it."""
    single = {"mIoU": found["miou"], "pixel accuracy": found["pixel_accuracy"]}
    by_threshold = {f"mIoU at {tau}": value for tau, value in found["miou_by_threshold"].items()}
    by_class = {f"IoU of {name}": value for name, value in found["iou_by_class"].items()}
    layers = {f"weight of {name}": value for name, value in found["layer_weights"].items()}
    return single | by_threshold | by_class | layers


def largest(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Largest difference per group of numbers."""
    groups: dict[str, float] = {}
    for name, value in before.items():
        group = name.split(" of ")[0].split(" at ")[0] + (" at any threshold" if " at " in name else "")
        groups[group] = round(max(groups.get(group, 0.0), abs(now[name] - value)), 6)
    return groups


def main(overrides: list[str]) -> None:
    chosen = [override.removeprefix("model=") for override in overrides if override.startswith("model=")]
    rest = [override for override in overrides if not override.startswith("model=")]
    table = Table("backbone", "setting", "mIoU", "threads", "instructions", "largest differences")
    for settings, dtype in ((SETTINGS, "float32"), (BFLOAT16, "bfloat16")):
        first: dict[str, dict[str, float]] = {}
        for name, environment in settings.items():
            for found in summaries(environment, chosen or BACKBONES, dtype, rest):
                backbone, where = found["model"], found["machine"]
                differences = largest(first.setdefault(backbone, reported(found)), reported(found))
                shown = ", ".join(f"{group} {value:g}" for group, value in differences.items() if value) or "none"
                table.add_row(backbone, name, f"{found['miou']:.4f}", str(where["threads"]), where["instructions"], shown)
                line = {"backbone": backbone, "setting": name, "images": found["images"], "miou": found["miou"]}
                line |= {"near_ties": found.get("near_ties"), "differences": differences, "machine": where}
                machine.append(line, machine.RESULTS.with_name("machines.jsonl"))
                print(json.dumps(line), flush=True)
    Console(width=200).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
