"""Rules for the size of pictures, on pairs of scenes that stand side by side (or one above the other), 64 x 128 pixels.

python -m experiments.sizes                     every rule on the three architectures, 200 held-out pairs: docs/sizes.md
python -m experiments.sizes --count 40 --shape 1x3

Counts go to OUT/MODEL/RULE.npz and are not computed again. A picture squeezed to the model's square is compared with the same
picture in its own shape and in windows; differences are paired over pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from experiments.command_line import save
from goca import config
from goca.compare.statistics import ImageCounts, bootstrap, interval
from goca.data.base import Sample, present_classes
from goca.runs.metrics import confusion
from goca.scenes.generator import TEST_SEEDS, scene
from goca.segmentor import Segmentor

MODELS = ("scenes_unet", "scenes_dit", "scenes_mmdit")
RULES = {
    "square": [],
    "keep_aspect shorter": ["sizing=keep_aspect"],
    "keep_aspect longer": ["sizing=keep_aspect", "sizing.side=longer"],
    "keep_aspect area": ["sizing=keep_aspect", "sizing.side=area"],
    "window": ["sizing=window"],
    "window stride 16": ["sizing=window", "sizing.stride=16"],
    "window stride 64": ["sizing=window", "sizing.stride=64"],
    "window class_maps": ["sizing=window", "sizing.merge=class_maps"],
}
METHODS = {"goca": [], "vanilla": ["preset=vanilla"], "lift_walk": ["preset=lift_walk"]}
BATCH = 20  # pictures of one forward
RESAMPLINGS = 2000


def joined(number: int, shape: tuple[int, int]) -> Sample:
    """Scenes of consecutive seeds as rows and columns of one picture."""
    each = [scene(TEST_SEEDS[number * shape[0] * shape[1] + i]) for i in range(shape[0] * shape[1])]
    lines = [each[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
    image = np.concatenate([np.concatenate([part.image for part in line], 1) for line in lines])
    label = np.concatenate([np.concatenate([part.label for part in line], 1) for line in lines])
    return Sample(f"{number}", image, label, present_classes(label))


def measure(model: str, overrides: Sequence[str], samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Hits and unions (pictures, classes) of the first threshold."""
    cfg = config.compose([f"model={model}", "model.device=cpu", *overrides])
    segmentor = Segmentor.build(cfg)
    segmentor.backbone.load()
    dataset, prompts = config.build(cfg, "dataset"), config.build(cfg, "prompts")
    dataset.setup()
    hits, unions = [], []
    for first in range(0, len(samples), BATCH):
        asked = []
        for sample in samples[first : first + BATCH]:
            sample.pixels = segmentor.pixels(sample.image)
            asked.append((sample, prompts(sample, dataset.classes, segmentor.backbone.text_segments)))
        found = segmentor.predict(asked, len(dataset.classes), dataset.has_background)
        for (sample, _), prediction in zip(asked, found, strict=True):
            counts = confusion(prediction.labels, torch.from_numpy(sample.label), len(dataset.classes))[0].double()
            hits.append(counts.diagonal().numpy())
            unions.append((counts.sum(0) + counts.sum(1) - counts.diagonal()).numpy())
    return np.array(hits), np.array(unions)


def counted(file: Path, model: str, overrides: Sequence[str], samples: Sequence[Sample]) -> ImageCounts:
    """The counts in the file, computed if it is not there yet."""
    if not file.exists():
        hits, unions = measure(model, overrides, samples)
        save(file, hits=hits, unions=unions)
    with np.load(file) as stored:
        return ImageCounts(stored["hits"], stored["unions"], has_background=False)


def row(name: str, counts: ImageCounts, usual: ImageCounts) -> str:
    """One line: mIoU with its interval, and the paired difference from the usual one."""
    values, before = bootstrap(counts, RESAMPLINGS, 0), bootstrap(usual, RESAMPLINGS, 0)
    low, high = interval(values, 0.95)
    worse, better = interval(values - before, 0.95)
    difference = float(counts.miou()[0] - usual.miou()[0])
    return f"| {name} | {counts.miou()[0]:.2f} [{low:.2f}, {high:.2f}] | {difference:+.2f} [{worse:+.2f}, {better:+.2f}] |"


def table(rows: Mapping[str, ImageCounts], usual: str, title: str) -> None:
    print(f"\n{title}\n\n| | mIoU | difference from {usual} |\n|---|---|---|")
    for name, counts in rows.items():
        print(row(name, counts, rows[usual]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--shape", default="1x2", help="rows x columns of scenes in a picture")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--methods", nargs="+", default=["goca"], choices=METHODS)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--out", type=Path, default=Path("outputs/sizes"))
    options = parser.parse_args()
    rows, columns = map(int, options.shape.split("x"))
    samples = [joined(number, (rows, columns)) for number in range(options.count)]
    for model in options.models:
        for method in options.methods:
            found = {}
            for rule in options.rules:
                file = options.out / f"{options.shape}_{options.count}" / model / f"{method}_{rule}.npz"
                found[rule] = counted(file, model, [*METHODS[method], *RULES[rule]], samples)
            table(found, "square", f"{model}, {method}, {options.count} pictures of {options.shape} scenes")


if __name__ == "__main__":
    main()
