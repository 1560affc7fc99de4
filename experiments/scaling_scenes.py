"""Measure methods on bundled backbones: all methods of a member read the same forwards, which costs a fifth of separate runs.

python -m experiments.scaling_scenes                 every member, 500 held-out scenes x 3 seeds: RESULTS_ZOO.md
python -m experiments.scaling_scenes --set main search references --count 200 --seeds 0 1 --out outputs/search
                                                     what was tried beside, and every layer as reference
python -m experiments.scaling_scenes --trained outputs/seed1/backbones --out outputs/seed1/scaling
                                                     other trainings of these backbones

Counts go to OUT/SPLIT/MODEL/METHOD.npz and are not computed again; `experiments.scaling_report` makes tables of them. A method
is a list of overrides of `python -m goca.run`, which gives the same numbers, rounding of other batches aside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.command_line import CLAIM, save
from goca import config
from goca.attention.call import AttentionCall, probabilities
from goca.attention.mixture import collector
from goca.attention.statistics import Observation
from goca.data.sizes import to_pixels
from goca.disk import replacing
from goca.errors import ConfigError
from goca.method import Plan
from goca.paths import BUNDLED
from goca.prompts.prompt import Prompt
from goca.runs.metrics import confusion
from goca.segmentor import Asked, Row, Segmentor

MAIN = {
    "vanilla": ["preset=vanilla"],
    "heads_only": ["aggregation=heads_only", "calibration=vanilla"],
    "layers_only": ["aggregation=layers_only", "calibration=vanilla"],
    "calibration_only": ["aggregation=vanilla"],
    "goca": [],
}
SEARCH = {
    "renormalize": ["aggregation.renormalize=true"],
    "equal layers": ["aggregation=heads_only"],
    "equal heads": ["aggregation=layers_only"],
    "order 2": ["model.affinity_order=2"],
    "order 3": ["model.affinity_order=3"],
    "no refinement": ["refinement=none"],
    "compound": ["calibration=compound"],
    "goca_raw": ["calibration=goca_raw"],
    "per_pixel": ["calibration=per_pixel"],
    "lift": ["calibration=lift"],
    "random_walk": ["refinement=random_walk"],
    "lift + random_walk": ["calibration=lift", "refinement=random_walk"],
    "mirrored": ["views=mirrored"],
    "noises": ["views=noises"],
    "shifted": ["views=shifted"],
    "shifted + lift + random_walk": ["views=shifted", "calibration=lift", "refinement=random_walk"],
    **{f"t = {t}": [f"model.timestep={t}"] for t in (10, 50, 200, 300)},
}
SETS = {"main": MAIN, "search": SEARCH}
REFERENCE = "reference "  # the set "references": each cross-attention layer of a member in turn
BATCH = 25  # images of one forward


class Recorder:
    """Takes the place of a method's statistics in a forward and keeps every call for the methods that want it."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self.plan = Plan(cross=dict.fromkeys(layers, layers[0]))
        self.calls: list[AttentionCall] = []

    def observe(self, call: AttentionCall) -> None:
        self.calls.append(call)

    def finish(self) -> None:
        pass

    def replay(self, segmentor: Segmentor, plan: Plan | None = None) -> Observation:
        """What the segmentor's own statistics would have observed, of the layers of another plan where one is given."""
        method = segmentor.method
        statistics = collector(
            method.aggregation, plan or segmentor.plan(), segmentor.max_bytes, len(method.passes), segmentor.precision
        )
        for call in self.calls:
            if call.layer in statistics.plan.observed:
                statistics.observe(call)
        return statistics.finish()


def build(model: str, overrides: list[str], split: str, count: int) -> tuple[Segmentor, Any, Any]:
    """A segmentor of one method, its data set and its prompts."""
    cfg = config.compose([f"model={model}", "model.device=cpu", f"split={split}", f"dataset.count={count}", *overrides])
    dataset = config.build(cfg, "dataset")
    dataset.setup()
    prompts = config.build(cfg, "prompts")
    prompts.setup(dataset)
    return Segmentor.build(cfg), dataset, prompts


def methods_of(model: str, sets: list[str]) -> dict[str, list[str]]:
    """The methods of these sets, by name; the references are those of the model."""
    methods = {name: overrides for group in sets if group in SETS for name, overrides in SETS[group].items()}
    if "references" in sets:
        segmentor, _, _ = build(model, [], "test", 1)
        segmentor.backbone.load()
        methods |= {REFERENCE + layer: [f"model.layers.reference={layer}"] for layer in segmentor.plan().cross}
    return methods


def batches(dataset: Any, prompts: Any, segmentor: Segmentor) -> Iterator[list[Asked]]:
    """Samples with their prompts, `BATCH` at a time."""
    for first in range(0, len(dataset), BATCH):
        samples = [dataset[i] for i in range(first, min(first + BATCH, len(dataset)))]
        samples = [dataclasses.replace(s, pixels=to_pixels(s.image, segmentor.backbone.size)) for s in samples]
        yield [(s, prompts(s, dataset.classes, segmentor.backbone.text_segments)) for s in samples]


@torch.inference_mode()
def measure(model: str, methods: dict[str, list[str]], split: str, count: int, seeds: list[int], folder: Path) -> None:
    """Counts of every method that has none yet: hits and unions (seeds, images, classes), and the mass of special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = {name: overrides for name, overrides in methods.items() if not (folder / f"{name}.npz").exists()}
    built = {name: build(model, overrides, split, count) for name, overrides in todo.items()}
    groups: dict[Any, list[str]] = {}  # methods that read the same forward
    for name, (segmentor, _, _) in built.items():
        groups.setdefault((segmentor.backbone.timestep, segmentor.method.views), []).append(name)
    for names in groups.values():
        leader, dataset, source = built[names[0]]
        leader.backbone.load()
        for name in names:
            built[name][0].backbone = leader.backbone
        counts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        masses = []
        for seed in seeds:
            leader.seed = seed
            for pairs in batches(dataset, source, leader):
                recorder = Recorder(tuple(leader.backbone.attention_modules))
                rows = leader.rows(pairs)
                leader.observe(rows, lambda size, own=recorder: own)  # type: ignore[arg-type]
                if seed == seeds[0] and "goca" in names:
                    masses += [mass(recorder.calls, row.index, row.prompt) for row in rows]
                for name in names:
                    counts[name] += evaluate(built[name][0], dataset, pairs, rows, recorder.replay(built[name][0]))
        for name in names:
            both = np.stack(counts[name]).reshape(len(seeds), len(dataset), 2, -1)
            extra = {"mass": np.stack(masses)} if name == "goca" else {}
            save(folder / f"{name}.npz", hits=both[:, :, 0], unions=both[:, :, 1], **extra)
            print(model, name, flush=True)


def evaluate(
    segmentor: Segmentor, dataset: Any, pairs: list[Asked], rows: list[Row], observation: Observation
) -> list[np.ndarray]:
    """(2, K) hits and unions of each image."""
    found = []
    for sample, prompts in pairs:
        assert sample.label is not None
        prediction = segmentor.finish(sample, prompts, rows, observation, len(dataset.classes), dataset.has_background)
        counts = confusion(prediction.labels, torch.from_numpy(sample.label), len(dataset.classes))[0].double()
        hits = counts.diagonal()
        found.append(torch.stack([hits, counts.sum(0) + counts.sum(1) - hits]).numpy())
    return found


def mass(calls: list[AttentionCall], row: int, prompt: Prompt) -> np.ndarray:
    """Share of the text attention on content, start, end, padding and other tokens: mean over layers, heads and pixels (5,)."""
    layers = []
    for call in calls:
        if call.text is not None:
            one = call.image_at(row)
            token = probabilities(one, call.text).mean((0, 1, 2))  # (n,)
            parts = [prompt.content, *(prompt.special.get(kind, ()) for kind in ("start", "end", "padding"))]
            shares = [float(token[list(part)].sum() / token.sum()) for part in parts]
            layers.append([*shares, 1 - sum(shares)])
    return np.mean(layers, axis=0)


def claim(folder: Path, training: Path, counts: bool = False) -> None:
    """Keep a training's report beside the counts that will be of it.

    Args:
        folder: where the report is kept.
        training: the report in the pipeline's folder.
        counts: there are some already; without a report beside them they are of the bundled training.

    Raises:
        ConfigError: there are counts of another training, or this one has no report.
    """
    noted = folder / CLAIM
    if not training.is_file():
        raise ConfigError(f"--trained: there is no {training}, by which counts of several trainings are told apart")
    report = json.loads(training.read_text())
    if noted.exists():
        before = json.loads(noted.read_text())
        other = any(before.get(key) != report.get(key) for key in ("steps", "held_out_loss"))
    else:
        other = counts and training.resolve().parent.parent != BUNDLED
    if other:
        raise ConfigError(f"{folder}: the counts there are of another training than {training.parent}; choose another --out")
    with replacing(noted) as part:
        part.write_text(json.dumps(report, indent=2) + "\n")


def claim_each(options: argparse.Namespace, counts: Callable[[str], bool]) -> None:
    """`claim` for every model of a table in `--out`; its counts are of the pipelines in `--trained`, or of the bundled ones.

    Args:
        counts: whether there are some of a model already.

    Raises:
        ConfigError: as `claim`.
    """
    for model in options.models:
        training = (options.trained or BUNDLED) / model / CLAIM
        if options.trained or training.is_file():  # other models have weights of their own
            claim(options.out / "trainings" / model, training, counts(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", help="these members instead of every one")
    parser.add_argument("--trained", type=Path, default=BUNDLED, help="folder of the pipelines; default: the bundled ones")
    parser.add_argument("--set", nargs="+", choices=[*SETS, "references"], default=["main"], help="groups of methods")
    parser.add_argument("--methods", nargs="+", choices=[*MAIN, *SEARCH], help="these methods instead of whole groups")
    parser.add_argument("--split", choices=("test", "train"), default="test")
    parser.add_argument("--count", type=int, default=500, help="scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/scaling_scenes"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = options.models or sorted(path.parent.name for path in options.trained.glob("*/model_index.json"))
    missing = [model for model in models if not (options.trained / model / CLAIM).exists()]
    if missing or not models:
        parser.error(f"--trained: {options.trained} holds no {', '.join(missing) or 'pipelines'}")
    for model in models:
        methods = methods_of(model, list(SETS) if options.methods else options.set)
        if options.methods:
            methods = {name: methods[name] for name in options.methods}
        pipeline, folder = options.trained / model, options.out / options.split / model
        claim(folder, pipeline / CLAIM, counts=any(folder.glob("*.npz")))
        methods = {name: [*overrides, f"model.checkpoint={pipeline}"] for name, overrides in methods.items()}
        measure(model, methods, options.split, options.count, options.seeds, folder)


if __name__ == "__main__":
    config.command(main)
