"""Every preset on every bundled backbone: names given or not, both looks of scenes. RESULTS_METHODS.md is made of it.

python -m experiments.methods                             500 scenes x 3 seeds (+experiment=methods leaves records too)
python -m experiments.methods --time --count 16           seconds and forwards per image, each method by itself
python -m experiments.methods_report outputs/methods      the tables

Methods that want the same forward (prompt, noise level, views) share it; what each computes from it is what it computes alone.
Work goes in rounds of `--round` scenes through all rows, and counts of finished rounds are not computed again, so that a run
that is stopped leaves the same scenes in every row. Files: OUT/LOOK/NAMES/MODEL/METHOD/SEED_FIRST_END.npz; refused.json;
trainings/MODEL/training.json, of which weights the counts are: those of others (`--trained`) want another OUT.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from experiments import command_line
from experiments.scaling_scenes import Recorder, claim_each, evaluate
from goca import config
from goca.attention.statistics import Observation
from goca.config.identity import difference
from goca.data.sizes import to_pixels
from goca.disk import replacing
from goca.errors import ConfigError, ModelError
from goca.method import Plan
from goca.method.aggregation.concepts import ConceptMaps
from goca.segmentor import Asked, Segmentor

LOOKS = ("plain", "camouflage")
MODELS = ("scenes_unet", "scenes_dit", "scenes_mmdit", "scenes_unet_small", "scenes_unet_tiny")
STATES = tuple(f"scenes_unet_small_{step}" for step in (4000, 8000, 12000))  # along a training
_NAMED = ["prompts=classes", "decision=offset", "refinement.steps.0.names=attention"]
NAMED: dict[str, list[str]] = {
    **{
        name: [f"preset={name}"]
        for name in (
            "vanilla",
            "manual",
            "fttm",
            "goca",
            "lift_walk",
            "lift_walk_pamr",
            "daam",
            "ovam",
            "diffsegmenter",
            "iseg",
            "elbo",
            "faseg",
        )
    },
    **{name: [f"preset={name}"] for name in ("seg4diff", "concept_attention", "maskdiffusion", "refam", "nerve", "cliper")},
    "diffseg, named": ["preset=diffseg", *_NAMED],
    "diffcut, named": ["preset=diffcut", *_NAMED],
    "lift_walk, shifted views": ["preset=lift_walk", "views=shifted"],
    "goca, pamr": ["preset=goca", "refinement=pamr"],
    "goca, colours": ["preset=goca", "refinement=colour_segments"],
    "goca, superpixels": [
        "preset=goca",
        "refinement=colour_segments",
        "refinement.steps.0.count=64",
        "refinement.steps.0.compactness=1",
    ],
}
MATCHED: dict[str, list[str]] = {  # told nothing, and matched with ground truth
    "diffseg": ["preset=diffseg"],
    "diffcut": ["preset=diffcut"],
    "colours": [
        *("aggregation=mixture", "calibration=raw", "prompts=unprompted", "decision=hungarian"),
        *("refinement=colour_segments", "refinement.steps.0.names=none"),
    ],
}
NAMES = {"present": NAMED, "all": NAMED, "none": MATCHED}
_ROWS = 64  # of one forward at most


@dataclass
class Row:
    """One method on one backbone."""

    name: str
    segmentor: Segmentor
    prompts: Any
    cfg: Any
    files: Path = field(default_factory=Path)

    def shares(self, other: Row) -> bool:
        """Whether one forward serves both."""
        if any(isinstance(row.segmentor.method.aggregation, ConceptMaps) for row in (self, other)):
            return False
        same = ("prompts", "passes", "views")
        plain = [{name: OmegaConf.to_container(row.cfg[name], resolve=True) for name in same} for row in (self, other)]
        return not difference(*plain) and self.segmentor.backbone.timestep == other.segmentor.backbone.timestep


def build(model: str, overrides: Sequence[str], names: str, checkpoint: str | None = None) -> tuple[Any, Segmentor, Any]:
    """Configuration, segmentor and prompts of a method.

    Raises:
        ConfigError: a part that is not installed.
    """
    own = [f"model.checkpoint={checkpoint}"] if checkpoint else []
    cfg = copy.deepcopy(_composed((f"model={model}", "model.device=cpu", *overrides, *own)))
    if names != "none":
        OmegaConf.update(cfg, "prompts.names", names)
    return cfg, Segmentor.build(cfg), config.build(cfg, "prompts")


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Any:
    return config.compose(list(overrides))  # most of what a row costs before its first scene


@functools.cache
def scenes(look: str, count: int, split: str = "test") -> Any:
    """A set of scenes."""
    dataset = config.build(config.compose([f"dataset.look={look}", f"dataset.count={count}", f"split={split}"]), "dataset")
    dataset.setup()
    return dataset


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by forward."""
    groups: list[list[Row]] = []
    for row in rows:
        for group in groups:
            if row.shares(group[0]):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def batches(row: Row, dataset: Any, places: range) -> Iterator[list[Asked]]:
    """Samples with their prompts, as many at a time as make a forward."""
    waiting: list[Asked] = []
    backbone = row.segmentor.backbone
    for place in places:
        sample = dataset[place]
        sample = dataclasses.replace(sample, pixels=to_pixels(sample.image, backbone.size))
        asked = (sample, row.prompts(sample, dataset.classes, backbone.text_segments))
        entries = sum(len(prompts) for _, prompts in (*waiting, asked)) * len(row.segmentor.method.views)
        if waiting and entries > _ROWS:
            yield waiting
            waiting = []
        waiting.append(asked)
    if waiting:
        yield waiting


@torch.inference_mode()
def measure(group: Sequence[Row], dataset: Any, places: range, seed: int) -> dict[str, np.ndarray]:
    """Hits and unions (images, 2, K) of every row of a group, from one forward a batch."""
    found: dict[str, list[np.ndarray]] = {row.name: [] for row in group}
    leader = group[0].segmentor
    for row in group:
        row.segmentor.seed = seed
    for pairs in batches(group[0], dataset, places):
        entries = leader.rows(pairs)
        if len(group) == 1:
            observations = {group[0].name: leader.observe(entries)}
        else:
            recorder = Recorder(tuple(leader.backbone.attention_modules))
            passes = leader.method.passes
            leader.backbone.observe(
                torch.stack([entry.seen.pixels for entry in entries]),  # type: ignore[misc]
                [entry.prompt.text for entry in entries],
                [entry.seen.image_id for entry in entries],
                seed,
                recorder,  # type: ignore[arg-type]
                None,
                passes,
                [entry.prompt for entry in entries],
            )
            observations = observed_together(group, recorder)
        for row in group:
            found[row.name] += evaluate(row.segmentor, dataset, pairs, entries, observations[row.name])
    return {name: np.stack(counts).astype(np.int32) for name, counts in found.items()}


def observed_together(group: Sequence[Row], recorder: Recorder) -> dict[str, Observation]:
    """What each row's statistics show of a forward; rows that aggregate alike share one, with all layers that they want."""
    alike: list[tuple[list[Row], Plan]] = []
    for row in group:
        plan, method = row.segmentor.plan(), row.segmentor.method
        for place, (rows, shared) in enumerate(alike):
            if rows[0].segmentor.method.aggregation == method.aggregation and shared.feature_kind == plan.feature_kind:
                layers = {
                    name: tuple(dict.fromkeys((*getattr(shared, name), *getattr(plan, name))))
                    for name in ("self_attention", "features")
                }
                alike[place] = ([*rows, row], dataclasses.replace(shared, **layers))
                break
        else:
            alike.append(([row], plan))
    found = {}
    for rows, plan in alike:
        observation = recorder.replay(rows[0].segmentor, plan)
        found |= dict.fromkeys((row.name for row in rows), observation)
    return found


class Table:
    """All rows, each built when it is asked for.

    Raises:
        ConfigError: there are counts of other trainings of these models.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        claim_each(options, lambda model: any(options.out.glob(f"*/*/{model}/*/*.npz")))
        self.options = options
        file = options.out / "refused.json"
        self.refused: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        self._rows: dict[tuple[str, str, str], Row] = {}
        self._backbones: dict[str, Any] = {}

    def names(self, model: str, names: str) -> list[str]:
        """Methods that were asked for and not refused."""
        wanted = [name for name in NAMES[names] if name not in self.options.without]
        wanted = [name for name in wanted if not self.options.methods or name in self.options.methods]
        return [name for name in wanted if f"{model}/{names}/{name}" not in self.refused]

    def row(self, model: str, names: str, name: str) -> Row | None:
        """A method on a backbone; None where it does not fit, with the reason in `refused`."""
        key = (model, names, name)
        if key not in self._rows:
            try:
                self._rows[key] = self._built(*key)
            except (ConfigError, ModelError) as error:
                self.refused["/".join(key)] = str(error)
                return None
        return self._rows[key]

    def _built(self, model: str, names: str, name: str) -> Row:
        trained = self.options.trained and str(self.options.trained / model)
        cfg, segmentor, prompts = build(model, NAMES[names][name], names, trained)
        timestep = segmentor.backbone.timestep
        if model not in self._backbones:
            segmentor.backbone.load()
            self._backbones[model] = segmentor.backbone
        segmentor.backbone = self._backbones[model]
        if segmentor.backbone.timestep != timestep:
            raise ConfigError("methods share a backbone; give time steps by passes.timesteps")
        segmentor.plan()
        row = Row(name, segmentor, prompts, cfg)
        if any(self.options.out.glob(f"*/{names}/{model}/{name}/*.npz")):
            return row
        trial = scenes("plain", 1)
        with torch.inference_mode():  # what cannot run is refused before the first round
            (pairs,) = batches(row, trial, range(1))
            entries = segmentor.rows(pairs)
            evaluate(segmentor, trial, pairs, entries, segmentor.observe(entries))
        return row


def run(options: argparse.Namespace) -> None:
    """Rounds of scenes through all rows."""
    table = Table(options)
    datasets = {look: scenes(look, options.count) for look in options.looks}
    cells = list(itertools.product(options.names, options.models, options.looks))
    for seed, first in itertools.product(options.seeds, range(0, options.count, options.round)):
        places = range(first, min(first + options.round, options.count))
        for names, model, look in cells:
            folder, file = options.out / look / names / model, f"{seed}_{first:04d}_{places.stop:04d}.npz"
            todo = [name for name in table.names(model, names) if not (folder / name / file).exists()]
            rows = [row for name in todo if (row := table.row(model, names, name))]
            for group in groups_of(rows):
                for name, counts in measure(group, datasets[look], places, seed).items():
                    command_line.save(folder / name / file, hits=counts[:, 0], unions=counts[:, 1])
            with replacing(options.out / "refused.json") as part:
                part.write_text(json.dumps(table.refused, indent=1) + "\n")
        print(f"seed {seed}, scenes {first} to {places.stop - 1}: done {time.strftime('%T')}", flush=True)


@torch.inference_mode()
def timed(options: argparse.Namespace) -> None:
    """Seconds and forwards per image of every row by itself, model and autoencoder included: OUT/times.json."""
    table, found = Table(options), {}
    dataset = scenes("plain", options.count + 8)
    for model in options.models:
        for names in options.names:
            for row in filter(None, (table.row(model, names, name) for name in table.names(model, names))):
                segmentor, calls = row.segmentor, []
                counter = segmentor.backbone.denoiser.register_forward_pre_hook(
                    lambda _, args, kwargs, calls=calls: calls.append(len(args[0] if args else kwargs["hidden_states"])),
                    with_kwargs=True,
                )
                started = 0.0
                for places in (range(options.count, options.count + 8), range(options.count)):  # the first is to warm up
                    calls.clear()
                    started = time.perf_counter()
                    for pairs in batches(row, dataset, places):
                        segmentor.predict(pairs, len(dataset.classes), dataset.has_background)
                seconds = (time.perf_counter() - started) / options.count
                counter.remove()
                found[f"{model}/{names}/{row.name}"] = {"seconds": seconds, "forwards": sum(calls) / options.count}
                print(
                    f"{model:24} {names:8} {row.name:26} {1000 * seconds:8.1f} ms {sum(calls) / options.count:6.1f}", flush=True
                )
    file = options.out / "times.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    with replacing(file) as part:
        part.write_text(json.dumps(before | found, indent=1) + "\n")


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=[*MODELS, *STATES])
    parser.add_argument("--trained", type=Path, help="folder of other pipelines of these names")
    parser.add_argument("--methods", nargs="+", choices=[*NAMED, *MATCHED], help="these rows alone")
    parser.add_argument("--without", nargs="+", choices=[*NAMED, *MATCHED], default=[], help="all rows but these")
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=list(LOOKS))
    parser.add_argument("--names", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--count", type=int, default=500, help="scenes")
    parser.add_argument("--round", type=int, default=50, help="scenes that go through all rows before the next ones do")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command_line.perform(parser, "outputs/methods", run, timed, "--time", "measure seconds and forwards, not mIoU")


if __name__ == "__main__":
    config.command(main)
