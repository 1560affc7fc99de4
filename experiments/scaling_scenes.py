"""Tables of the scaling experiment from its run folders: `python experiments/scaling_scenes.py outputs/scaling_scenes`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from goca.compare.statistics import ImageCounts, bootstrap, interval
from goca.paths import BUNDLED
from goca.results import RunFolder

METHODS = ("vanilla", "heads_only", "layers_only", "calibration_only", "goca")


def read(folder: Path) -> dict[tuple[str, str], dict[int, ImageCounts]]:
    """(model, method) -> seed -> counts, of every finished run below a folder."""
    runs: dict[tuple[str, str], dict[int, ImageCounts]] = defaultdict(dict)
    for path in sorted(folder.rglob("summary.json")):
        summary = json.loads(path.read_text())
        records = sorted(RunFolder(path.parent).records(), key=lambda record: record["image_id"])
        counts = ImageCounts.of(records, len(summary["classes"]), 0, summary["has_background"], summary["unseen_classes"])
        runs[summary["model"], summary["method"]][summary["seed"]] = counts
    return runs


def pooled(seeds: dict[int, ImageCounts]) -> ImageCounts:
    """The counts of every image added up over noise seeds, so that images are what a bootstrap draws."""
    parts = list(seeds.values())
    hits, unions = sum(part.hits for part in parts), sum(part.unions for part in parts)
    return ImageCounts(hits, unions, parts[0].has_background, parts[0].unseen_classes)


def main(folder: Path) -> None:
    runs = read(folder)
    models = list(dict.fromkeys(model for model, _ in runs))
    loss = {name: json.loads((BUNDLED / name / "training.json").read_text())["held_out_loss"] for name in models}
    models.sort(key=lambda name: -loss[name])  # weakest generator first
    miou, gains = {}, []
    print("| model | held-out loss | images x seeds |", " | ".join(METHODS), "| GoCA - vanilla |")
    print("|" + "---|" * (len(METHODS) + 4))
    for model in models:
        cells, samples = [], {}
        for method in METHODS:
            counts = pooled(runs[model, method])
            samples[method] = bootstrap(counts, 2000, seed=0)
            low, high = interval(samples[method], 0.95)
            miou[model, method] = float(counts.miou()[0])
            cells.append(f"{miou[model, method]:.1f} [{low:.1f}, {high:.1f}]")
        gains.append(miou[model, "goca"] - miou[model, "vanilla"])
        low, high = interval(samples["goca"] - samples["vanilla"], 0.95)  # paired: the same images in every draw
        size = f"{len(counts.hits)} x {len(runs[model, 'goca'])}"
        print(f"| {model} | {loss[model]:.4f} | {size} |", " | ".join(cells), f"| {gains[-1]:+.1f} [{low:+.1f}, {high:+.1f}] |")
    print(f"\nmean of GoCA - vanilla over {len(models)} members: {np.mean(gains):+.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
