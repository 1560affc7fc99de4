"""Images per second of two checkouts, by turns: `python -m benchmarks.checkouts ../baseline batch_size=8`.

Each checkout runs in a process of its own, which waits while the other one works (A B A B ...), so that clocks and other work
cancel. The first checkout is the baseline (a `git worktree` of an earlier commit), the second is the one this file lies in;
further arguments are those of `python -m goca.run`. One line for each is appended to outputs/benchmarks/results.jsonl.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import machine
from goca.paths import PACKAGE

ROUNDS = 4
# Runs in each checkout: a line of the standard input starts one evaluation, whose seconds by stage come back as a line.
RUN = """
import contextlib, json, sys, tempfile
from pathlib import Path
import torch
from goca import config
from goca.runs.evaluation import evaluate
config.quiet()
cfg = config.compose(["logger=none", "figures.count=0", "dataset.count=2000", "limit=200", "trainer.enable_progress_bar=false",
                      *sys.argv[1:]])
for number, _ in enumerate(sys.stdin):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        summary = evaluate(cfg, Path(folder) / str(number))
    found = {"seconds": summary["seconds_per_image"], "stages": summary["seconds_by_stage"], "miou": summary["miou"]}
    print(json.dumps(found | {"threads": torch.get_num_threads()}), flush=True)
"""


def start(checkout: Path, overrides: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", RUN, *overrides]
    return subprocess.Popen(
        command,
        cwd=checkout,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def one_run(process: subprocess.Popen[str]) -> dict:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(baseline: Path, overrides: list[str]) -> None:
    checkouts = {"before": baseline.resolve(), "now": PACKAGE.parent}
    processes = {name: start(checkout, overrides) for name, checkout in checkouts.items()}
    found: dict[str, list[dict]] = {name: [] for name in processes}
    for round_ in range(ROUNDS + 1):  # the first one warms up
        for name, process in processes.items():
            run = one_run(process)
            found[name] += [run] if round_ else []
    for name, process in processes.items():
        process.communicate()
        runs, commit = found[name], commit_of(checkouts[name])
        seconds = statistics.median(run["seconds"] for run in runs)
        stages = {stage: statistics.median(run["stages"][stage] for run in runs) for stage in runs[0]["stages"]}
        ratios = sorted(run["seconds"] / before["seconds"] for run, before in zip(runs, found["before"], strict=True))
        line = {
            "benchmark": "checkouts", "variant": name, "overrides": overrides, "rounds": ROUNDS, "miou": runs[0]["miou"],
            "images_per_second": round(1 / seconds, 1), "ratio_time": round(statistics.median(ratios), 4),
            "ratio_range": [round(ratios[0], 4), round(ratios[-1], 4)],
            "stages": {stage: round(value, 6) for stage, value in stages.items()},
        }  # fmt: skip
        machine.append({**line, **machine.context(runs[0]["threads"]), "commit": commit})
        shares = "  ".join(f"{stage} {1000 * value:.2f}" for stage, value in sorted(stages.items(), key=lambda item: -item[1]))
        print(f"{name:7} {1 / seconds:6.1f} images/s  {statistics.median(ratios):.3f} of before  ms: {shares}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
