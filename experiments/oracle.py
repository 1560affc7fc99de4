"""How far automatic weights are from the best possible: heads, layers, gains and offsets chosen with labels on training scenes.

python -m experiments.oracle                     every bundled architecture, both looks: OUT/MODEL_LOOK.json
python -m experiments.oracle --report            the tables

*Best heads*: greedily, the (layer, head) whose addition to an equal mean raises mIoU most, until none does. *Best layers*: the
same with whole layers. *Gain and offset*: two numbers per class on the finished maps, by coordinate ascent. All are chosen on
`--fit` training scenes and judged on `--count` test scenes; nothing of this is a method, as it needs labels.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from experiments import command_line
from experiments.methods import LOOKS, Row, batches, build, measure, scenes
from experiments.scaling_report import DRAWS, table
from experiments.scaling_scenes import Recorder, claim_each
from goca import config
from goca.attention.call import AttentionCall, probabilities
from goca.attention.reductions import head_weights
from goca.compare.statistics import ImageCounts, bootstrap, interval
from goca.disk import replacing
from goca.errors import ConfigError
from goca.method.calibration import Calibration, ClassMaps, PlainGroups
from goca.ops import resize
from goca.runs.metrics import confusion
from goca.segmentor import Segmentor

MODELS = ("scenes_unet", "scenes_unet_small", "scenes_unet_tiny", "scenes_dit", "scenes_mmdit")
BASES = {"vanilla": ["preset=vanilla"], "goca": ["preset=goca"]}
_GAINS = np.exp(np.linspace(-1.0, 1.0, 9))
_OFFSETS = np.linspace(-0.3, 0.3, 9)
Score = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class Shown:
    """What one image's heads say: maps (N, n, f, f) of N heads for its content tokens and, as the last, all other tokens."""

    heads: torch.Tensor
    own_weights: torch.Tensor  # (N, f, f): GoCA's weight of each head within its layer
    words: PlainGroups
    label: torch.Tensor  # (f, f), the middle of each cell

    def token_maps(self, weights: torch.Tensor) -> torch.Tensor:
        """Weighted sum over heads (N,) or (N, f, f), as shares of all tokens."""
        weights = weights if weights.ndim == 3 else weights[:, None, None]
        total = (weights[:, None] * self.heads).sum(0).clamp(min=0)
        return total / total.sum(0).clamp(min=1e-12)


def heads_of(calls: Sequence[AttentionCall]) -> list[tuple[str, int]]:
    """(layer, head) in the order of the forward."""
    return [(call.layer, head) for call in calls if call.text is not None for head in range(call.query.shape[1])]


@torch.inference_mode()
def shown(segmentor: Segmentor, prompts: Any, dataset: Any) -> tuple[list[Shown], list[tuple[str, int]]]:
    """What every image's heads say, and which heads these are."""
    found, names = [], []
    size = (segmentor.backbone.feature_size,) * 2
    for pairs in batches(Row("", segmentor, prompts, None), dataset, range(len(dataset))):
        recorder = Recorder(tuple(segmentor.plan().cross))
        rows = segmentor.rows(pairs)
        segmentor.observe(rows, lambda size, own=recorder: own)  # type: ignore[arg-type]
        calls = [call for call in recorder.calls if call.text is not None]
        names = heads_of(calls)
        for row, (sample, (prompt,)) in zip(rows, pairs, strict=True):
            content = list(prompt.content)
            parts, weights = [], []
            for call in calls:
                one = call.image_at(row.index)
                every = probabilities(one, one.text)[0].transpose(1, 2)  # (H, n, S)
                rest = every.sum(1, keepdim=True) - every[:, content].sum(1, keepdim=True)
                kept = torch.cat([every[:, content], rest], 1).unflatten(-1, call.grid)
                parts.append(resize(kept, size))
                weights.append(resize(head_weights(one, segmentor.backbone.heads)[0].unflatten(-1, call.grid), size))
            places = {token: place for place, token in enumerate(content)}
            tokens = {i: tuple(places[t] for t in own) for i, own in prompt.class_tokens.items() if own}
            step = sample.label.shape[0] // size[0]
            label = torch.from_numpy(sample.label[step // 2 :: step, step // 2 :: step])
            words = PlainGroups(tokens, tuple(range(len(content))))
            found.append(Shown(torch.cat(parts), torch.cat(weights), words, label))
    return found, names


def miou(images: Sequence[Shown], maps: Sequence[ClassMaps], gains: np.ndarray, offsets: np.ndarray, classes: int) -> float:
    """mIoU in per cent of the arg-max over gain x score + offset, on the maps' own grid."""
    counts = torch.zeros(classes * classes, dtype=torch.long)
    gain, offset = torch.from_numpy(gains).float(), torch.from_numpy(offsets).float()
    for image, own in zip(images, maps, strict=True):
        ids = torch.tensor(own.ids)
        labels = ids[(own.scores * gain[ids, None, None] + offset[ids, None, None]).argmax(0)]
        counts += torch.bincount((image.label.long() * classes + labels).flatten(), minlength=classes * classes)
    matrix = counts.view(classes, classes).double()
    hits = matrix.diagonal()
    unions = matrix.sum(0) + matrix.sum(1) - hits
    return float(100 * (hits[unions > 0] / unions[unions > 0]).mean())


def greedy(candidates: int, score: Score, most: int = 12) -> tuple[list[int], float]:
    """The candidates whose addition raises the score most, one after the other, until none does."""
    chosen: list[int] = []
    best = -np.inf
    while len(chosen) < min(most, candidates):
        scores = {i: score([*chosen, i]) for i in range(candidates) if i not in chosen}
        top = max(scores, key=scores.__getitem__)
        if scores[top] <= best:
            break
        chosen, best = [*chosen, top], scores[top]
    return chosen, best


def ascend(score: Callable[[np.ndarray, np.ndarray], float], classes: int, rounds: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A gain and an offset per class, each in turn the best of a grid while the others stay."""
    gains, offsets = np.ones(classes), np.zeros(classes)
    best = score(gains, offsets)
    for _, i in itertools.product(range(rounds), range(1, classes)):
        for values, grid in ((gains, _GAINS), (offsets, _OFFSETS)):
            before = values[i]
            kept = before
            for value in grid:
                values[i] = value
                found = score(gains, offsets)
                if found > best:
                    best, kept = found, value
            values[i] = kept
    return gains, offsets


def as_overrides(names: Sequence[tuple[str, int]], chosen: Sequence[int], grids: dict[str, tuple[int, int]]) -> list[str]:
    """Equal mean of the chosen heads, as settings of `python -m goca.run`."""
    side = max(height for height, _ in grids.values())
    layers = list(dict.fromkeys(layer for layer, _ in names))
    listed: dict[int, list[int]] = {}
    for layer, head in (names[i] for i in chosen):
        factor = round(side / grids[layer][0])
        same = [other for other in layers if round(side / grids[other][0]) == factor]
        per_layer = sum(1 for other, _ in names if other == layer)
        listed.setdefault(factor, []).append(same.index(layer) * per_layer + head)
    factors = {round(side / grid[0]) for grid in grids.values()}
    text = ",".join(f"{factor}:[{','.join(map(str, sorted(listed.get(factor, []))))}]" for factor in sorted(factors))
    return ["aggregation=mixture", "aggregation.weigh=pair", "aggregation.share_out=true", f"++aggregation.heads={{{text}}}"]


class Oracle:
    """One backbone on one look.

    Args:
        model: a bundled one.
        checkpoint: another pipeline folder of that model.
        fit, test: data sets to choose on and to judge on.
    """

    def __init__(self, model: str, checkpoint: str | None, fit: Any, test: Any) -> None:
        self.model, self.checkpoint, self.fit, self.test = model, checkpoint, fit, test
        self.backbone: Any = None

    def row(self, overrides: Sequence[str]) -> Row:
        """A method on this backbone."""
        cfg, segmentor, prompts = build(self.model, overrides, "present", self.checkpoint)
        self.backbone = self.backbone or segmentor.backbone.load()
        segmentor.backbone = self.backbone
        return Row("row", segmentor, prompts, cfg)

    def judged(self, overrides: Sequence[str]) -> ImageCounts:
        """Counts of a method on the test scenes."""
        found = measure([self.row(overrides)], self.test, range(len(self.test)), 0)["row"].astype(float)
        return ImageCounts(found[:, 0], found[:, 1], has_background=False)

    @torch.inference_mode()
    def finished(self, row: Row, dataset: Any) -> list[tuple[Any, ClassMaps]]:
        """Every sample with its finished class maps."""
        found = []
        for pairs in batches(row, dataset, range(len(dataset))):
            predictions = row.segmentor.predict(pairs, len(dataset.classes), dataset.has_background)
            found += [(sample, prediction.maps) for (sample, _), prediction in zip(pairs, predictions, strict=True)]
        return found

    def gained(self, base: str) -> ImageCounts:
        """Counts on the test scenes with a gain and an offset per class chosen on the others."""
        row, classes = self.row(BASES[base]), len(self.fit.classes)
        pairs = self.finished(row, self.fit)
        images = [_labelled(sample, maps.size) for sample, maps in pairs]
        maps = [own for _, own in pairs]
        gains, offsets = ascend(lambda g, o: miou(images, maps, g, o, classes), classes)
        gain, offset = torch.from_numpy(gains).float(), torch.from_numpy(offsets).float()
        hits, unions = [], []
        for sample, own in self.finished(row, self.test):
            ids = torch.tensor(own.ids)
            changed = dataclasses.replace(own, scores=own.scores * gain[ids, None, None] + offset[ids, None, None])
            label = torch.from_numpy(sample.label)
            decided = row.segmentor.method.decision.decide(changed, sample.image.shape[:2], classes, False)
            counts = confusion(decided.labels, label, classes)[0].double()
            hits.append(counts.diagonal().numpy())
            unions.append((counts.sum(0) + counts.sum(1) - counts.diagonal()).numpy())
        return ImageCounts(np.stack(hits), np.stack(unions), has_background=False)

    def everything(self) -> dict[str, Any]:
        """All rows of the table, and what each head is worth alone."""
        plain = self.row(["aggregation=vanilla"])
        images, names = shown(plain.segmentor, plain.prompts, self.fit)
        grids = self._grids(plain)
        found: dict[str, Any] = {"rows": {}, "heads": [f"{layer} {head}" for layer, head in names]}
        layers = list(dict.fromkeys(layer for layer, _ in names))
        members = [[i for i, (layer, _) in enumerate(names) if layer == other] for other in layers]
        shares = [image.heads[:, :-1].sum(1) / image.heads.sum(1) for image in images]  # (N, f, f) of content tokens
        found["content share"] = torch.stack([share.mean((1, 2)) for share in shares]).mean(0).tolist()
        found["own weights"] = torch.stack([image.own_weights.mean((1, 2)) for image in images]).mean(0).tolist()
        for base, overrides in BASES.items():
            calibration: Any = plain.segmentor.method.calibration if base == "goca" else Calibration(steps=("minmax",))
            score = scored(images, calibration, len(self.fit.classes))
            found[f"{base}: each head alone"] = [score([i]) for i in range(len(names))]
            own = self.judged(overrides)
            heads, _ = greedy(len(names), score)
            kept, _ = greedy(len(layers), lambda chosen, score=score: score([i for c in chosen for i in members[c]]))
            chosen = ",".join(layers[i] for i in kept)
            rows = {
                "own weights": own,
                "best heads": self.judged([*overrides, *as_overrides(names, heads, grids)]),
                "best layers": self.judged(
                    [*overrides, "aggregation=manual", f"aggregation.cross_layers=[{chosen}]", "aggregation.heads=average"]
                ),
                "gain and offset": self.gained(base),
            }
            found["rows"][base] = {name: _row(counts, own) for name, counts in rows.items()}
            found[f"{base}: chosen heads"] = [found["heads"][i] for i in heads]
            found[f"{base}: chosen layers"] = [layers[i] for i in kept]
        return found

    def _grids(self, row: Row) -> dict[str, tuple[int, int]]:
        with torch.inference_mode():
            (pairs,) = batches(row, self.fit, range(1))
            recorder = Recorder(tuple(row.segmentor.plan().cross))
            row.segmentor.observe(row.segmentor.rows(pairs), lambda size: recorder)  # type: ignore[arg-type]
        return {call.layer: call.grid for call in recorder.calls}


def scored(images: Sequence[Shown], calibration: Calibration, classes: int) -> Score:
    nothing = np.ones(classes), np.zeros(classes)

    @torch.inference_mode()
    def score(chosen: Sequence[int]) -> float:
        maps = []
        for image in images:
            weights = torch.zeros(len(image.heads))
            weights[list(chosen)] = 1.0
            maps.append(calibration(image.token_maps(weights), image.words))  # type: ignore[arg-type]
        return miou(images, maps, *nothing, classes)

    return score


def _labelled(sample: Any, size: tuple[int, int]) -> Shown:
    step = sample.label.shape[0] // size[0]
    label = torch.from_numpy(sample.label[step // 2 :: step, step // 2 :: step])
    return Shown(torch.zeros(0), torch.zeros(0), PlainGroups({}, ()), label)


def _row(counts: ImageCounts, own: ImageCounts) -> dict[str, float]:
    low, high = interval(bootstrap(counts, DRAWS, seed=0) - bootstrap(own, DRAWS, seed=0), 0.95)
    return {"miou": float(counts.miou()[0]), "gain": float((counts.miou() - own.miou())[0]), "low": low, "high": high}


def run(options: argparse.Namespace) -> None:
    """Everything that has no file yet.

    Raises:
        ConfigError: there is a file of another training, or of other numbers of scenes.
    """
    files = {(look, model): options.out / f"{model}_{look}.json" for look in options.looks for model in options.models}
    claim_each(options, lambda model: any((options.out / f"{model}_{look}.json").exists() for look in LOOKS))
    scenes_of = {"fit": options.fit, "count": options.count}
    for file in filter(Path.exists, files.values()):
        before = json.loads(file.read_text())
        if other := [f"--{key} {before[key]}" for key, number in scenes_of.items() if before.get(key, number) != number]:
            raise ConfigError(f"{file} was made with {' '.join(other)}; give that again, or choose another --out")
    for (look, model), file in files.items():
        if file.exists():
            continue
        checkpoint = options.trained and str(options.trained / model)
        sets = scenes(look, options.fit, "train"), scenes(look, options.count)
        found = Oracle(model, checkpoint, *sets).everything() | scenes_of
        with replacing(file) as part:
            part.write_text(json.dumps(found, indent=1) + "\n")
        print(file, flush=True)


def report(options: argparse.Namespace) -> None:
    """Rows of every model and look, and how well GoCA's head weights rank heads."""
    files = {(m, look): options.out / f"{m}_{look}.json" for m in options.models for look in LOOKS}
    found = {key: json.loads(file.read_text()) for key, file in files.items() if file.exists()}
    kinds = ("own weights", "best heads", "best layers", "gain and offset")
    rows = []
    for (model, look), content in found.items():
        for base in BASES:
            own, *others = (content["rows"][base][kind] for kind in kinds)
            cells = [f"{o['miou']:.1f} ({o['gain']:+.1f} [{o['low']:+.1f}, {o['high']:+.1f}])" for o in others]
            rows.append([f"`{model}`", look, base, f"{own['miou']:.1f}", *cells])
    table(["model", "look", "method", *kinds], rows)
    rows = []
    for (model, look), content in found.items():
        alone, weights, share = (content[key] for key in ("goca: each head alone", "own weights", "content share"))
        layers = [name.rpartition(" ")[0] for name in content["heads"]]
        ranks = [within(alone, weights, layers), within(alone, share, layers), within(weights, share, layers)]
        rows.append([f"`{model}`", look, f"{max(alone):.1f}", f"{np.median(alone):.1f}", *(f"{rank:+.2f}" for rank in ranks)])
    print("Rank correlations over the heads of a layer, mean of layers: mIoU of a head alone, GoCA's weight of it, and the")
    print("share of its attention that lies on content tokens.\n")
    table(["model", "look", "best head alone", "median", "mIoU, weight", "mIoU, share", "weight, share"], rows)


def within(one: Sequence[float], other: Sequence[float], layers: Sequence[str]) -> float:
    """Mean over layers of the rank correlation of two values of their heads."""
    found = []
    for layer in dict.fromkeys(layers):
        pairs = [(a, b) for a, b, own in zip(one, other, layers, strict=True) if own == layer]
        found.append(spearmanr(*zip(*pairs, strict=True)).statistic)
    return float(np.nanmean(found))


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=list(LOOKS))
    parser.add_argument("--trained", type=Path, help="folder of other pipelines of these names")
    parser.add_argument("--fit", type=int, default=60, help="training scenes to choose on")
    parser.add_argument("--count", type=int, default=100, help="test scenes to judge on")
    command_line.perform(parser, "outputs/oracle", run, report)


if __name__ == "__main__":
    config.command(main)
