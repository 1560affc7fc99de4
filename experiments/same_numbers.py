"""Whether two checkouts give the same numbers: every preset on every bundled backbone, compared to the last digit.

    python experiments/same_numbers.py ../baseline --limit 4

The first checkout is the baseline (a `git worktree` of an earlier commit), the second is the one this file lies in. Each runs
all jobs in one process of its own; times, memory and versions are left out. Keys that only the newer summary has are listed.
Exit code 1 where a number differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
BACKBONES = ("scenes_unet", "scenes_unet_small", "scenes_unet_tiny", "scenes_dit", "scenes_mmdit")
NO_NUMBERS = ("seconds_per_image", "seconds_by_stage", "peak_memory_bytes", "versions", "commit", "machine", "method")
# Runs in each checkout: overrides of every job from the standard input, summaries by job to a file.
RUN = """
import json, sys
from pathlib import Path
from goca import config
try:
    from goca.runs.evaluation import evaluate
except ImportError:
    from goca.run import evaluate
jobs, folder = json.load(sys.stdin), Path(sys.argv[1])
from goca.errors import ModelError
for name, overrides in jobs.items():
    try:
        evaluate(config.compose(overrides), folder / name)
    except ModelError as error:  # a method that this backbone has no layers for
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "summary.json").write_text(json.dumps({"refused": str(error)}))
"""


def jobs(baseline: Path, limit: int, backbones: list[str]) -> dict[str, list[str]]:
    """Overrides by job: the default job as it is, then every preset and the shifted views on every backbone."""
    quiet = ["logger=none", "figures.count=1", "trainer.enable_progress_bar=false", "model.device=cpu"]
    presets = sorted(path.stem for path in (baseline / "conf" / "preset").glob("*.yaml") if path.stem not in ("none", "fttm"))
    chosen: dict[str, list[str]] = {"default": [*quiet, f"limit={8 * limit}"]}
    for backbone in backbones:
        for preset in presets:
            chosen[f"{backbone}-{preset}"] = [*quiet, f"model={backbone}", f"preset={preset}", f"limit={limit}"]
        chosen[f"{backbone}-shifted"] = [*quiet, f"model={backbone}", "preset=lift_walk", "views=shifted", f"limit={limit}"]
    return chosen


def run(checkout: Path, wanted: dict[str, list[str]], folder: Path) -> dict[str, dict[str, Any]]:
    """The summaries of a checkout, as its own code writes them."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", RUN, str(folder)]
    ran = subprocess.run(command, input=json.dumps(wanted), capture_output=True, text=True, cwd=checkout, env=environment)
    if ran.returncode:
        sys.exit(f"{checkout}: {ran.stderr[-3000:]}")
    return {name: json.loads((folder / name / "summary.json").read_text(encoding="utf-8")) for name in wanted}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path, help="the other checkout")
    parser.add_argument("--limit", type=int, default=4, help="images of each job; the default job takes eight times as many")
    parser.add_argument("--backbones", nargs="*", default=BACKBONES)
    options = parser.parse_args()
    wanted = jobs(options.baseline, options.limit, list(options.backbones))
    with tempfile.TemporaryDirectory() as folder:
        before, now = (
            run(checkout.resolve(), wanted, Path(folder, name))
            for name, checkout in (("before", options.baseline), ("now", HERE))
        )
    different, new = 0, set()
    for name in wanted:
        changed = {key for key in before[name] if key not in NO_NUMBERS and before[name][key] != now[name].get(key)}
        changed |= {"refused"} & (now[name].keys() - before[name].keys())
        new |= now[name].keys() - before[name].keys()
        different += bool(changed)
        verdict = "DIFFERS" if changed else "same"
        if "refused" in now[name]:
            print(f"{name:<32} refused: {now[name]['refused']}  {verdict}")
        else:
            print(f"{name:<32} {now[name]['images']:>3} images  mIoU {now[name]['miou']:.4f}  {verdict}")
        for key in sorted(changed):
            print(f"    {key}: {before[name].get(key)} -> {now[name].get(key)}")
    print(f"{len(wanted)} jobs, {different} differ; new keys: {', '.join(sorted(new)) or 'none'}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
