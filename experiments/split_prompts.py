"""Scores of several prompts of one vocabulary: what makes them comparable, on scenes whose 14 names are split artificially.

python -m experiments.split_prompts                    200 held-out scenes, 1 to 5 prompts, three architectures: docs/prompts.md
python -m experiments.split_prompts --background       the eight objects are classes and everything else is background

All ways read the same forwards. Counts go to OUT/MODEL/NAME.npz and are not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.command_line import save
from experiments.sizes import BATCH, MODELS, row
from goca import config
from goca.compare.statistics import ImageCounts
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.prompts.prompt import Prompt, TextSegment
from goca.prompts.sources import Vocabulary
from goca.runs.metrics import confusion
from goca.scenes.generator import OBJECTS, TEST_SEEDS, scene
from goca.segmentor import Segmentor

WAYS = ("each", "joint", "sink", "anchor")
THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(-4, 10))


def prompts_of(
    names: Sequence[str], count: int, table: ClassTable, segments: Sequence[TextSegment], background: bool
) -> tuple[Prompt, ...]:
    """The names in so many prompts of about equal length."""
    bounds = [len(names) * k // count for k in range(count + 1)]
    found: list[Prompt] = []
    for start, stop in pairwise(bounds):
        found += Vocabulary(words=tuple(names[start:stop]), background_token=background)(None, table, segments)
    return tuple(found)


@torch.inference_mode()
def measure(
    segmentor: Segmentor, dataset: Any, count: int, prompts: int, with_word: bool, objects: bool
) -> dict[str, dict[str, np.ndarray]]:
    """Way -> hits, unions (thresholds, scenes, classes) and the part of pixels that are predicted as background."""
    table: ClassTable = dataset.classes
    names = [name for name in table.names[1:] if not objects or name in OBJECTS]
    kept = np.array([0] + [i if name in names else 0 for i, name in enumerate(table.names) if i])
    asked = prompts_of(names, prompts, table, segmentor.backbone.text_segments, with_word)
    ways = [way for way in WAYS if (prompts > 1 or way == "each") and (way != "anchor" or with_word)]
    found: dict[str, dict[str, list[Any]]] = {way: {"hits": [], "unions": [], "background": []} for way in ways}
    for first in range(0, count, BATCH):
        samples = []
        for seed in TEST_SEEDS[first : min(first + BATCH, count)]:
            drawn = scene(seed)
            pixels = segmentor.pixels(drawn.image)
            label = kept[np.minimum(drawn.label, len(kept) - 1)] if objects else drawn.label
            samples.append(Sample(str(seed), drawn.image, label.astype(np.uint8), (), pixels=pixels))
        rows = segmentor.rows([(sample, asked) for sample in samples])
        seen = segmentor.observe(rows)
        for way in ways:
            worded = {id(prompt): dataclasses.replace(prompt, across=way) for prompt in asked}
            moved = [dataclasses.replace(each, prompt=worded[id(each.prompt)]) for each in rows]
            for sample in samples:
                prediction = segmentor.finish(sample, tuple(worded.values()), moved, seen, len(table), objects)
                counts = confusion(prediction.labels, torch.from_numpy(sample.label), len(table)).double().numpy()
                hits = counts.diagonal(axis1=1, axis2=2)
                found[way]["hits"].append(hits)
                found[way]["unions"].append(counts.sum(1) + counts.sum(2) - hits)
                found[way]["background"].append((prediction.labels == 0).float().mean((1, 2)).numpy())
    return {way: {name: np.stack(values, 1) for name, values in each.items()} for way, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--set", nargs="*", default=[], help="overrides of python -m goca.run")
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/split_prompts"))
    options = parser.parse_args()
    thresholds = [f"decision.thresholds={list(THRESHOLDS)}"] if options.background else []
    for model in options.models:
        cfg = config.compose([f"model={model}", "model.device=cpu", *thresholds, *options.set])
        segmentor, dataset = Segmentor.build(cfg), config.build(cfg, "dataset")
        dataset.setup()
        segmentor.backbone.load()
        names: dict[str, tuple[ImageCounts, str]] = {}
        for count in options.prompts:
            for with_word in (False, True):
                label = f"{count}{' with background' if with_word else ''}"
                kind = "_".join([str(options.count), *(["objects"] if options.background else []), *options.set])
                file = options.out / kind / model / f"{label}.npz"
                if not file.exists():
                    measured = measure(segmentor, dataset, options.count, count, with_word, options.background)
                    flat = {f"{way}|{name}": values for way, each in measured.items() for name, values in each.items()}
                    save(file, **flat)
                with np.load(file) as stored:
                    for way in dict.fromkeys(key.partition("|")[0] for key in stored.files):
                        hits, unions = stored[f"{way}|hits"], stored[f"{way}|unions"]
                        each = [ImageCounts(h, u, has_background=options.background) for h, u in zip(hits, unions, strict=True)]
                        best = int(np.argmax([float(counts.miou()[0]) for counts in each]))
                        share = 100 * stored[f"{way}|background"].mean(1)
                        tau = f" at {THRESHOLDS[best]:+.1f}, background on {share[best]:.1f} % (at 0: {share[4]:.1f} %)"
                        names[f"{label}, {way}"] = (each[best], tau if options.background else "")
        print(f"\n{model}, {options.count} scenes {options.set or ''}\n")
        print("| prompts | mIoU | difference from one prompt |\n|---|---|---|")
        for name, (counts, note) in names.items():
            print(row(name + note, counts, names["1, each"][0]), flush=True)


if __name__ == "__main__":
    main()
