"""mIoU and layer weights of the default statistics beside exact ones, from the same forwards, on bundled backbones.

    python experiments/default_statistics.py --size 256 --count 100 --seeds 0 1 2

Default is `aggregation.rows=auto attention.precision=auto`, exact is `rows=all precision=float32`. Every forward is observed by
both, so that nothing else differs. `--dtype bfloat16` runs the model in half precision, where the precision matters. A line of
totals is appended for every batch (--out); what is there already is not computed again. Prints the table at the end.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from goca import config
from goca.attention.call import AttentionCall
from goca.attention.statistics import AttentionStatistics, Observation
from goca.data.base import Sample
from goca.ops import Grid
from goca.runs.metrics import confusion, scores
from goca.segmentor import Segmentor

BACKBONES = ("scenes_unet", "scenes_unet_small", "scenes_unet_tiny", "scenes_dit", "scenes_mmdit")
BATCH = 4
_MEANS = ("pixels_that_differ", "mean_error", "rms_error", "standard_error", "within_two")


class Both:
    """Shows every call to the default statistics and to exact ones."""

    def __init__(self, segmentor: Segmentor, size: Grid) -> None:
        aggregation, self.plan = segmentor.method.aggregation, segmentor.plan()
        exact = replace(aggregation, rows="all")
        self._default = AttentionStatistics(aggregation, self.plan, segmentor.max_bytes, precision="auto", size=size)
        self._exact = AttentionStatistics(exact, self.plan, segmentor.max_bytes, precision="float32", size=size)
        self.exact: Observation | None = None

    def observe(self, call: AttentionCall) -> None:
        self._default.observe(call)
        self._exact.observe(replace(call, scratch={}))

    def finish(self) -> Observation:
        self.exact = self._exact.finish()
        return self._default.finish()


@torch.inference_mode()
def batch(segmentor: Segmentor, prompts: Any, dataset: Any, positions: range, classes: int) -> dict[str, Any]:
    """Confusion counts of both, how many pixels differ, and the errors of layer weights beside the mean weight 1 / L.

    Also the standard errors that the default statistics tell of, and how many weights are within two of them.
    """
    samples: list[Sample] = [dataset[position] for position in positions]
    for sample in samples:
        sample.pixels = segmentor.pixels(sample.image)
    asked = [(sample, prompts(sample, dataset.classes, segmentor.backbone.text_segments)) for sample in samples]
    both: list[Both] = []

    def statistics(size: Grid) -> Any:
        both.append(Both(segmentor, size))
        return both[-1]

    rows = segmentor.rows(asked)
    default = segmentor.observe(rows, statistics)
    exact = both[0].exact
    assert exact is not None
    counts: dict[str, Any] = {}
    labels: dict[str, list[torch.Tensor]] = {}
    for name, seen in (("default", default), ("exact", exact)):
        found = [segmentor.finish(sample, own, rows, seen, classes, False) for sample, own in asked]
        labels[name] = [prediction.labels for prediction in found]
        counts[name] = sum(
            confusion(one.labels, torch.from_numpy(sample.label), classes) for one, sample in zip(found, samples, strict=True)
        )
    weights = [torch.stack([*seen.layer_weights.values()]) for seen in (default, exact)]
    error = (weights[0] - weights[1]).abs() * len(weights[0])
    told = torch.stack([*default.layer_weight_errors.values()]) * len(weights[0]) if default.layer_weight_errors else error * 0
    differ = [(a != b).float().mean() for a, b in zip(labels["default"], labels["exact"], strict=True)]
    return {
        "images": len(samples),
        "counts": {name: total.tolist() for name, total in counts.items()},
        "pixels_that_differ": float(torch.stack(differ).mean()),
        "largest_error": float(error.max()),
        "mean_error": float(error.mean()),
        "standard_error": float(told.square().mean().sqrt()),
        "rms_error": float(error.square().mean().sqrt()),
        "within_two": float((error <= 2 * told).float().mean()),
        "same_bits": bool(torch.equal(default.token_maps, exact.token_maps) and torch.equal(weights[0], weights[1])),
    }


def table(lines: list[dict[str, Any]]) -> None:
    groups = dict.fromkeys((line["model"], line["size"], line["dtype"], line["seed"]) for line in lines)
    for key in groups:
        own = [line for line in lines if (line["model"], line["size"], line["dtype"], line["seed"]) == key]
        miou = {
            name: 100 * float(np.nanmax(scores(sum(torch.tensor(line["counts"][name]) for line in own), "skip", False).miou))
            for name in ("default", "exact")
        }
        mean = {part: np.mean([line.get(part, np.nan) for line in own]) for part in _MEANS}
        print(
            f"{key[0]:18} {key[1]:4} px {key[2]:9} seed {key[3]}  {sum(line['images'] for line in own):4} images"
            f"  mIoU {miou['default']:.3f} exact {miou['exact']:.3f} ({miou['default'] - miou['exact']:+.3f})"
            f"  pixels {100 * mean['pixels_that_differ']:.3f} %  weights: mean {100 * mean['mean_error']:.2f} %,"
            f" largest {100 * max(line['largest_error'] for line in own):.2f} %"
            f", root mean square {100 * mean['rms_error']:.2f} %, told {100 * mean['standard_error']:.2f} %,"
            f" within two standard errors {100 * mean['within_two']:.1f} %"
            f"{'  the same bits' if all(line['same_bits'] for line in own) else ''}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="of the backbone's input; scenes are drawn at 64 px")
    parser.add_argument("--count", type=int, default=100, help="scenes")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--models", nargs="*", default=list(BACKBONES))
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/default_statistics.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    keys = ("model", "size", "dtype", "seed", "first")
    done = {tuple(line[key] for key in keys) for line in lines}
    for seed in options.seeds:
        for name in options.models:
            overrides = [
                f"model={name}",
                f"model.size={options.size}",
                f"model.dtype={options.dtype}",
                f"dataset.count={options.count}",
            ]
            cfg = config.compose([*overrides, f"seed={seed}"])
            segmentor, prompts, dataset = Segmentor.build(cfg), config.build(cfg, "prompts"), config.build(cfg, "dataset")
            dataset.setup()
            for first in range(0, options.count, BATCH):
                fact = dict(zip(keys, (name, options.size, options.dtype, seed, first), strict=True))
                if tuple(fact.values()) in done:
                    continue
                segmentor.backbone.load()
                positions = range(first, min(first + BATCH, options.count))
                lines.append(fact | batch(segmentor, prompts, dataset, positions, len(dataset.classes)))
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    table([line for line in lines if line["size"] == options.size and line["dtype"] == options.dtype])


if __name__ == "__main__":
    main()
