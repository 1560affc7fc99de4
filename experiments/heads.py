"""Why GoCA gains much on one training and loses on another: what its head weights follow, and what changes them for the better.

python -m experiments.heads scenes_unet_tiny scenes_unet_tiny=FOLDER ...      bundled models, and other trainings of them
python -m experiments.heads --report                                          the tables

A head's weight is its share of the layer's output, o_h . O / |O|^2. Every variant changes one thing about these weights and
leaves the rest of GoCA, or of vanilla, as it is. Beside them: how often weights are negative, how much of the attention lies
on content words, and how both go with what a head is worth alone. OUT/NAME.json; a finished one is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from experiments import command_line
from experiments.methods import Row, batches, build, scenes
from experiments.oracle import scored, shown, within
from experiments.scaling_report import DRAWS, table
from experiments.scaling_scenes import Recorder, evaluate
from goca import config
from goca.attention.call import AttentionCall, probabilities
from goca.compare.statistics import ImageCounts, bootstrap, interval
from goca.disk import replacing
from goca.method.aggregation import heads
from goca.method.calibration import Calibration
from goca.paths import BUNDLED

Change = Callable[[AttentionCall, torch.Tensor], AttentionCall]


def content_alone(call: AttentionCall, content: torch.Tensor) -> AttentionCall:
    """Heads' outputs as content words alone would make them."""
    assert call.text is not None and call.value is not None
    attention, value = probabilities(call, call.text), call.value[:, :, call.text].float()
    kept = torch.nn.functional.pad(content, (0, max(0, value.shape[2] - content.shape[1])))[:, None, None, : value.shape[2]]
    return replace(call, output=(attention * kept) @ value, scratch={})  # further keys are those of an encoder without words


def centred(call: AttentionCall, _: torch.Tensor) -> AttentionCall:
    """Heads' outputs without their mean over the picture."""
    assert call.output is not None
    return replace(call, output=call.output - call.output.mean(2, keepdim=True), scratch={})


def content_attention(call: AttentionCall, content: torch.Tensor) -> AttentionCall:
    """In place of heads' outputs, how much of each head's attention at each pixel lies on content words; for `given`."""
    assert call.text is not None and call.output is not None
    attention = probabilities(call, call.text)
    kept = torch.nn.functional.pad(content, (0, max(0, attention.shape[3] - content.shape[1])))
    share = (attention * kept[:, None, None, : attention.shape[3]]).sum(-1, keepdim=True)
    return replace(call, output=share.expand_as(call.output), scratch={})


def given(output: torch.Tensor, projection: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A head method whose weights are what stands in the place of the outputs."""
    return output[..., 0] / output[..., 0].sum(1, keepdim=True).clamp(min=1e-12)


def same_everywhere(output: torch.Tensor, projection: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A head method: GoCA's weights, their mean over the picture at every pixel."""
    weights = heads.dot_product(output, projection, value)
    return weights.mean(2, keepdim=True).expand_as(weights)


def _as_it_is(call: AttentionCall, _: torch.Tensor) -> AttentionCall:
    return call


# Settings, and what is done to a head's output before it is weighed.
VARIANTS: dict[str, tuple[list[str], Change]] = {
    "vanilla": (["preset=vanilla"], _as_it_is),
    "vanilla, head weights": (["aggregation=heads_only", "calibration=vanilla"], _as_it_is),
    "goca, equal heads": (["aggregation=layers_only"], _as_it_is),
    "goca": ([], _as_it_is),
    "goca, clamped": (["aggregation.heads=dot_product_clamped"], _as_it_is),
    "goca, lengths": (["aggregation.heads=l2_norm"], _as_it_is),
    "goca, centred": ([], centred),
    "goca, content words": ([], content_alone),
    "goca, content attention": (["aggregation.heads=experiments.heads.given"], content_attention),
    "goca, same everywhere": (["aggregation.heads=experiments.heads.same_everywhere"], _as_it_is),
    "goca, no refinement": (["refinement=none"], _as_it_is),
    "goca, equal heads, no refinement": (["aggregation=layers_only", "refinement=none"], _as_it_is),
}


PAIRS = (("goca", "vanilla"), ("goca, equal heads", "vanilla"), ("goca", "goca, equal heads"))  # all, rescaling, head weights


class Changed(Recorder):
    """The calls of another recorder, changed."""

    def __init__(self, source: Recorder, change: Change, content: torch.Tensor) -> None:
        super().__init__(tuple(source.plan.cross))
        self.calls = [call if call.text is None else change(call, content) for call in source.calls]


@torch.inference_mode()
def compared(model: str, checkpoint: str, dataset: Any, seed: int) -> dict[str, np.ndarray]:
    """Hits and unions (images, 2, K) of every variant, from one forward a batch."""
    built = {name: build(model, overrides, "present", checkpoint) for name, (overrides, _) in VARIANTS.items()}
    leader, prompts = built["goca"][1:]
    leader.backbone.load()
    leader.seed = seed
    for _, segmentor, _ in built.values():
        segmentor.backbone, segmentor.seed = leader.backbone, seed
    found: dict[str, list[np.ndarray]] = {name: [] for name in VARIANTS}
    for pairs in batches(Row("", leader, prompts, None), dataset, range(len(dataset))):
        recorder = Recorder(tuple(leader.backbone.attention_modules))
        rows = leader.rows(pairs)
        leader.observe(rows, lambda size, own=recorder: own)  # type: ignore[arg-type]
        content = torch.zeros(len(rows), len(rows[0].prompt.tokens))
        for row in rows:
            content[row.index, list(row.prompt.content)] = 1.0
        for name, (_, change) in VARIANTS.items():
            segmentor = built[name][1]
            observation = Changed(recorder, change, content).replay(segmentor)
            found[name] += evaluate(segmentor, dataset, pairs, rows, observation)
    return {name: np.stack(counts) for name, counts in found.items()}


def described(model: str, checkpoint: str, dataset: Any) -> dict[str, Any]:
    """What each head is worth alone on some scenes, its weight and its attention to content words, and how weights behave."""
    _, segmentor, prompts = build(model, ["aggregation=vanilla"], "present", checkpoint)
    segmentor.backbone.load()
    images, names = shown(segmentor, prompts, dataset)
    layers = [layer for layer, _ in names]
    calibration: Any = segmentor.method.calibration
    alone = {
        "goca": [scored(images, calibration, len(dataset.classes))([i]) for i in range(len(names))],
        "vanilla": [scored(images, Calibration(steps=("minmax",)), len(dataset.classes))([i]) for i in range(len(names))],
    }
    weights = torch.stack([image.own_weights.mean((1, 2)) for image in images]).mean(0)
    share = torch.stack([(image.heads[:, :-1].sum(1) / image.heads.sum(1)).mean((1, 2)) for image in images]).mean(0)
    words = [image.heads[:, :-1].mean((0, 2, 3)) for image in images]  # each word's share of the attention
    ratio = [float(own.max() / own.min()) for own in words if len(own) > 1]
    sizes, negative = [], []
    for layer in dict.fromkeys(layers):
        own = torch.stack([image.own_weights[[i for i, other in enumerate(layers) if other == layer]] for image in images])
        sizes.append(float(own.abs().sum(1).mean()))
        negative.append(float((own < 0).float().mean()))
    return {
        "heads": [f"{layer} {head}" for layer, head in names],
        "alone": alone,
        "weight": weights.tolist(),
        "content": share.tolist(),
        "loudest / quietest word": float(np.median(ratio)),
        "sum of sizes": sizes,
        "negative": negative,
        "alone, weight": within(alone["vanilla"], weights.tolist(), layers),
        "alone, content": within(alone["vanilla"], share.tolist(), layers),
        "weight, content": within(weights.tolist(), share.tolist(), layers),
    }


def run(options: argparse.Namespace) -> None:
    """Every pipeline that has no file yet."""
    for named in options.pipelines:
        model, _, folder = named.partition("=")
        name = model if not folder else f"{Path(folder).name} ({Path(folder).parent.name})"
        file = options.out / f"{name}.json"
        if file.exists():
            continue
        checkpoint = folder or str(BUNDLED / model)
        counts = compared(model, checkpoint, scenes(options.look, options.count), 0)
        found = described(model, checkpoint, scenes(options.look, options.fit, "train"))
        found["training"] = json.loads((Path(checkpoint) / "training.json").read_text())
        found["counts"] = {variant: both.astype(int).tolist() for variant, both in counts.items()}
        with replacing(file) as part:
            part.write_text(json.dumps(found) + "\n")
        print(file, flush=True)


def _counts(found: dict[str, Any], variant: str) -> ImageCounts:
    both = np.array(found["counts"][variant], dtype=float)
    return ImageCounts(both[:, 0], both[:, 1], has_background=False)


def _gain(found: dict[str, Any], variant: str, base: str) -> str:
    counts, other = _counts(found, variant), _counts(found, base)
    low, high = interval(bootstrap(counts, DRAWS, seed=0) - bootstrap(other, DRAWS, seed=0), 0.95)
    return f"{(counts.miou() - other.miou())[0]:+.1f} [{low:+.1f}, {high:+.1f}]"


def report(options: argparse.Namespace) -> None:
    """mIoU of the variants, what the weights are like, and what over all trainings goes with GoCA's gain."""
    every = {path.stem: json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))}
    gain = {name: (_counts(f, "goca").miou() - _counts(f, "vanilla").miou())[0] for name, f in every.items()}
    every = dict(sorted(every.items(), key=lambda item: gain[item[0]]))
    measured = [name for name in VARIANTS if all(name in found["counts"] for found in every.values())]
    others = [name for name in measured if name.startswith("goca, ") and "refinement" not in name and "equal" not in name]
    rows = []
    for name, found in every.items():
        own = [f"{_counts(found, base).miou()[0]:.1f}" for base in ("vanilla", "goca")]
        parts = [_gain(found, one, other) for one, other in PAIRS[1:]]
        rows.append([f"`{name}`", *own, *parts, *(_gain(found, other, "goca") for other in others)])
    head = [
        "training",
        "vanilla",
        "goca",
        "rescaling",
        "head weights",
        *(f"{other.removeprefix('goca, ')}" for other in others),
    ]
    table(head, rows)
    columns: tuple[str, ...] = ("negative", "sum of sizes", "content", "alone, weight", "alone, content", "weight, content")
    columns += ("loudest / quietest word",) if all("loudest / quietest word" in found for found in every.values()) else ()
    rows = []
    values: dict[str, Sequence[float]] = {c: [float(np.mean(found[c])) for found in every.values()] for c in columns}
    for i, (name, found) in enumerate(every.items()):
        best = [f"{f(found['alone'][kind]):.1f}" for kind in ("vanilla", "goca") for f in (np.max, np.median)]
        rows.append([f"`{name}`", *best, *(f"{values[c][i]:+.2f}" for c in columns)])
    head = ["best head, vanilla", "median head, vanilla", "best head, goca", "median head, goca"]
    table(["training", *head, *columns], rows)
    for column, (name, base) in itertools.product(columns, PAIRS) if len(every) > 3 else ():
        one, order = values[column], [(_counts(f, name).miou() - _counts(f, base).miou())[0] for f in every.values()]
        rank = spearmanr(one, order)
        print(f"- rank correlation of {column} with {name} - {base}: {rank.statistic:+.2f}, p = {rank.pvalue:.2f}")


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("pipelines", nargs="*", help="MODEL, or MODEL=FOLDER of another training of it")
    parser.add_argument("--look", default="plain")
    parser.add_argument("--fit", type=int, default=40, help="training scenes to judge single heads on")
    parser.add_argument("--count", type=int, default=100, help="test scenes for the variants")
    command_line.perform(parser, "outputs/heads", run, report)


if __name__ == "__main__":
    config.command(main)
