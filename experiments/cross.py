"""Which ideas go together: calibrations x refinements, alone and in pairs, x weights of heads and layers.

python -m experiments.cross                                on training scenes, so that the test scenes stay unseen
python -m experiments.cross --report                       the tables

Every cell is what `python -m goca.run` with its parts gives: one forward per prompt serves all of them, and a pair goes on
from the maps of its first refinement. Counts: OUT/LOOK/MODEL_FIRST.npz, an array (images, 2, classes) for each cell.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import command_line
from experiments.methods import LOOKS, Row, batches, build, scenes
from experiments.scaling_report import difference, table
from experiments.scaling_scenes import Recorder
from goca import config
from goca.attention.statistics import SelfAttention
from goca.backbones.word_losses import class_exponents
from goca.compare.statistics import ImageCounts
from goca.method.calibration import ClassMaps
from goca.method.losses import LossExponents
from goca.method.refinement import EntropyAffinity, HeadChain, LevelPowers, RefinementContext, Refinements
from goca.method.refinement.crf import available
from goca.runs.metrics import confusion
from goca.segmentor import Segmentor

MODELS = ("scenes_unet", "scenes_dit", "scenes_mmdit")
WEIGHTS = ("vanilla", "goca")  # of heads and layers
# Half of refam's words: with all of them the longest prompts do not fit into the 32 tokens of two models.
_MAGNETS = ["prompts=sentence", "prompts.before=''", "prompts.after=', a, the, of, with, to'"]
CALIBRATIONS = {
    "vanilla": ["calibration=vanilla"],
    "goca": ["calibration=goca"],
    "lift": ["calibration=lift"],
    "elbo": ["calibration=loss_power", "calibration.exponents.timesteps=[101,301,501,701,901]"],  # a quarter of its time steps
    "magnets": [*_MAGNETS, "calibration=vanilla"],
    "magnets, lift": [*_MAGNETS, "calibration=lift"],
}
PIXELS = ("pamr", "crf")  # these look at pixels


def steps_of(model: str) -> dict[str, Refinements]:
    """Refinements by name; those that the repository has only within a preset have its constants, on the last finest layers."""
    named = {"affinity": "affinity", "walk": "random_walk", "pamr": "pamr", **({"crf": "crf"} if available() else {})}
    found = {name: build(model, [f"refinement={option}"], "present")[1].method.refinement for name, option in named.items()}
    found["entropy"] = Refinements((EntropyAffinity(entropy=0.2, iterations=10, places=(-1,)),))
    found["power"] = Refinements((LevelPowers(weights={1: 0.3, 2: 0.5, 4: 0.1, 8: 0.1}),))
    found["cliper"] = Refinements((HeadChain(threshold=0.1, places=(-1, -2)),))
    return found


def chains(names: Sequence[str], pairs: bool) -> list[tuple[str, ...]]:
    """None, each alone, and pairs: attention before other attention, and attention before pixels."""
    attention = [name for name in names if name not in PIXELS]
    pixels = [name for name in names if name in PIXELS]
    both = [*itertools.permutations(attention, 2), *itertools.product(attention, pixels)] if pairs else []
    return [(), *((name,) for name in names), *both]


class Kept:
    """Self-attention of one image whose rows are computed once for all refinements."""

    def __init__(self, attention: SelfAttention) -> None:
        self.grid, self.heads = attention.grid, attention.heads
        every = torch.arange(self.grid[0] * self.grid[1])
        self._mean = attention.rows(every)
        self._heads = list(attention.head_rows(every))

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        return self._mean[index]

    def head_rows(self, index: torch.Tensor, heads: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        for head in range(self.heads) if heads is None else heads:
            yield self._heads[head][index]


class Cross:
    """All cells of one model.

    Args:
        model: a bundled one.
    """

    def __init__(self, model: str) -> None:
        self.steps = steps_of(model)
        needs = Refinements(tuple(step for refinement in self.steps.values() for step in refinement.steps))
        self.parts: dict[tuple[str, str], tuple[Segmentor, Any]] = {}
        backbone = None
        for weights, (name, overrides) in itertools.product(WEIGHTS, CALIBRATIONS.items()):
            _, segmentor, prompts = build(model, [f"aggregation={weights}", *overrides], "present")
            backbone = backbone or segmentor.backbone.load()
            segmentor.backbone = backbone  # type: ignore[assignment]
            segmentor.method = dataclasses.replace(segmentor.method, refinement=needs)
            self.parts[weights, name] = segmentor, prompts

    def cells(self) -> list[str]:
        """Names of all cells."""
        return [
            cell(weights, calibration, chain)
            for weights, calibration in self.parts
            for chain in chains(list(self.steps), weights == "goca")
        ]

    @torch.inference_mode()
    def measure(self, dataset: Any, places: range) -> dict[str, np.ndarray]:
        """Hits and unions (images, 2, K) of every cell."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.cells()}
        for magnets in (False, True):
            group = {key: part for key, part in self.parts.items() if key[1].startswith("magnets") == magnets}
            leader, prompts = next(iter(group.values()))
            for pairs in batches(Row("", leader, prompts, None), dataset, places):
                recorder = Recorder(tuple(leader.backbone.attention_modules))
                rows = leader.rows(pairs)
                leader.observe(rows, lambda size, own=recorder: own)  # type: ignore[arg-type]
                segmentors = {weights: segmentor for (weights, _), (segmentor, _) in group.items()}
                observations = {weights: recorder.replay(segmentor) for weights, segmentor in segmentors.items()}
                for row, (sample, asked) in zip(rows, pairs, strict=True):  # one prompt an image
                    label = torch.from_numpy(sample.label)
                    attention = {name: Kept(own) for name, own in observations["goca"].self_attention(row.index).items()}
                    context = RefinementContext(
                        size=tuple(observations["goca"].token_maps.shape[-2:]),  # type: ignore[arg-type]
                        self_attention=attention,
                        image=row.seen.pixels,
                    )
                    exponents = None
                    for (weights, name), (segmentor, _) in group.items():
                        calibration = segmentor.method.calibration
                        if name == "elbo":
                            wanted: LossExponents = calibration.exponents  # type: ignore[union-attr,assignment]
                            exponents = exponents or class_exponents(wanted, segmentor.backbone, sample, asked, segmentor.seed)
                        own = exponents if name == "elbo" else None
                        maps = calibration(observations[weights].token_maps[row.index], row.prompt, (), own)  # type: ignore
                        for chain, refined in self._refined(maps, context, weights == "goca"):
                            decided = segmentor.method.decision.decide(
                                refined, sample.image.shape[:2], len(dataset.classes), dataset.has_background, label
                            )
                            counts = confusion(decided.labels, label, len(dataset.classes))[0]
                            hits = counts.diagonal()
                            both = torch.stack([hits, counts.sum(0) + counts.sum(1) - hits]).numpy()
                            found[cell(weights, name, chain)].append(both)
        return {name: np.stack(counts).astype(np.int32) for name, counts in found.items()}

    def _refined(self, maps: ClassMaps, context: RefinementContext, pairs: bool) -> Iterator[tuple[tuple[str, ...], ClassMaps]]:
        done: dict[tuple[str, ...], ClassMaps] = {(): maps}
        for chain in chains(list(self.steps), pairs):
            if chain:
                done[chain] = self.steps[chain[-1]].refine(done[chain[:-1]], context)
            yield chain, done[chain]


def cell(weights: str, calibration: str, chain: tuple[str, ...]) -> str:
    """Name of a cell.

    >>> cell("goca", "lift", ("walk", "pamr"))
    'goca | lift | walk + pamr'
    """
    return f"{weights} | {calibration} | {' + '.join(chain) or 'none'}"


def run(options: argparse.Namespace) -> None:
    """Rounds of scenes through all models and looks."""
    crosses: dict[str, Cross] = {}
    for first in range(0, options.count, options.round):
        places = range(first, min(first + options.round, options.count))
        for model, look in itertools.product(options.models, LOOKS):
            file = options.out / options.split / look / f"{model}_{first:04d}.npz"
            if not file.exists():
                crosses[model] = crosses.get(model) or Cross(model)
                counts = crosses[model].measure(scenes(look, places.stop, options.split), places)
                command_line.save(file, **counts)
                print(file, flush=True)


def read(folder: Path, model: str) -> dict[str, ImageCounts]:
    """Counts of every cell over all finished rounds."""
    parts = [dict(np.load(path)) for path in sorted(folder.glob(f"{model}_[0-9]*.npz"))]
    names = set.intersection(*(set(part) for part in parts)) if parts else set()
    joined = {name: np.concatenate([part[name] for part in parts]).astype(float) for name in names}
    return {name: ImageCounts(both[:, 0], both[:, 1], has_background=False) for name, both in joined.items()}


def report(options: argparse.Namespace) -> None:
    """The best chains, what each part adds, and the best cells of all."""
    counts = {(look, model): read(options.out / options.split / look, model) for look in LOOKS for model in options.models}
    counts = {key: cells for key, cells in counts.items() if cells}
    miou = {key: scored(cells) for key, cells in counts.items()}
    sizes = {len(next(iter(cells.values())).hits) for cells in counts.values()}
    print(f"{options.split} scenes: {sorted(sizes)}\n")
    for look in LOOKS:
        keys = [key for key in miou if key[0] == look]
        if not keys:
            continue
        names = set.intersection(*(set(miou[key]) for key in keys))
        singles = sorted({name.split(" | ")[2] for name in names if "+" not in name})
        mean = {name: float(np.mean([miou[key][name] for key in keys])) for name in names}
        print(f"### {look}: mean of {', '.join(f'`{model}`' for _, model in keys)}\n")
        rows = [
            [
                f"{weights}, {calibration}",
                *(f"{mean[cell(weights, calibration, (s,) if s != 'none' else ())]:.1f}" for s in singles),
            ]
            for weights in WEIGHTS
            for calibration in CALIBRATIONS
        ]
        table(["weights, calibration", *singles], rows)
    base = "goca | goca | affinity"
    gains = gains_of(list(miou.values()), base)
    order = sorted(gains, key=lambda name: -min(gains[name]))[: options.best]
    print(f"### Gain over {base.replace('|', '/')} on the worst of {len(miou)} (look, architecture)\n")
    rows = [
        [
            name.replace("|", "/"),
            f"{min(gains[name]):+.1f}",
            f"{np.mean(gains[name]):+.1f}",
            *(difference(cells[name], cells[base]) for cells in counts.values()),
        ]
        for name in order
    ]
    table(["cell", "worst", "mean", *(f"{model}, {look}" for look, model in miou)], rows)
    chosen_on, judged_on = (
        gains_of([scored(cells, slice(start, None, 2)) for cells in counts.values()], base) for start in (0, 1)
    )
    best = max(chosen_on, key=lambda name: min(chosen_on[name]))
    rank = sorted(judged_on, key=lambda name: -min(judged_on[name])).index(best) + 1
    print(
        f"Chosen on every second scene: {best.replace('|', '/')} ({min(chosen_on[best]):+.1f} at the worst); on the other"
        f" scenes {', '.join(f'{gain:+.1f}' for gain in judged_on[best])}, place {rank} of {len(judged_on)}."
    )


def scored(cells: dict[str, ImageCounts], part: slice = slice(None)) -> dict[str, float]:
    """mIoU of each cell over a part of the scenes."""
    parts = {name: ImageCounts(found.hits[part], found.unions[part], has_background=False) for name, found in cells.items()}
    return {name: float(found.miou()[0]) for name, found in parts.items()}


def gains_of(miou: Sequence[dict[str, float]], base: str) -> dict[str, list[float]]:
    """mIoU of each cell less that of `base`, one number for each look and architecture."""
    names = set.intersection(*(set(cells) for cells in miou))
    return {name: [cells[name] - cells[base] for cells in miou] for name in sorted(names)}


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--split", choices=("test", "train"), default="train")
    parser.add_argument("--count", type=int, default=40, help="scenes")
    parser.add_argument("--round", type=int, default=10)
    parser.add_argument("--best", type=int, default=12, help="cells in the last table")
    command_line.perform(parser, "outputs/cross", run, report)


if __name__ == "__main__":
    config.command(main)
