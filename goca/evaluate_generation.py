"""`python -m goca.evaluate_generation images=[A,B,C] reference=DIR`: judge pictures, and kinds of guidance side by side."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.evaluate_generation", "evaluate_generation")

import glob
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.table import Table as Grid
from torch import Tensor

from goca import config
from goca.config.redact import redact, write_config
from goca.errors import ConfigError, DataError
from goca.generation.frechet import Gaussian
from goca.generation.image_sets import ImageSet, measured, read_file
from goca.generation.measures import ClipScore, Features
from goca.generation.pictures import origin, read_manifest
from goca.generation.results import Estimate, Run, baseline_of, besides_guidance, differences, estimates, table
from goca.generation.show import load_maps, side_by_side
from goca.runs.provenance import environment
from goca.runs.report import Logger, Report

console = Console(emoji=False)
SCENE_MEASURES = ("answers right %", "named classes shown %")


class Evaluation:
    """The measures of one command, loaded once."""

    def __init__(self, cfg: DictConfig, cache: Path, advance: Callable[[int], None]) -> None:
        self.cfg, self.cache, self.advance = cfg, cache, advance
        self.features: Features | None = config.build(cfg, "extractor")
        self.clip = None if cfg.clip is None else ClipScore(model=cfg.clip)
        for part in (self.features, self.clip):
            if part is not None:
                part.load()

    def of(self, images: ImageSet, measure: Features | ClipScore, size: tuple[int, int]) -> dict[str, Tensor]:
        what = measure.identity
        options = (self.cfg.chunk, self.cfg.batch_size, self.advance)
        return measured(images, measure, what, size, self.cfg.resize, self.cache, *options)

    def run(self, images: ImageSet, folder: Path, size: tuple[int, int]) -> Run:
        """Measure one folder, its pictures brought to one size."""
        values: dict[str, np.ndarray] = {}
        features = None
        if self.features is not None:
            found = self.of(images, self.features, self.compared_at(size))
            features = found["features"].numpy()
            if "right" in found and images.prompts is not None:
                values[SCENE_MEASURES[0]] = 100 * found["right"].mean(1).numpy()
                shown, named = found["found"].numpy().T
                values[SCENE_MEASURES[1]] = 100 * shown / named.clip(min=1)
        if self.clip is not None:
            if images.prompts is None:
                raise DataError(f"{folder} has no manifest with prompts, which the CLIP score needs; set clip=null")
            values["CLIP score"] = self.of(images, self.clip, size)["score"].numpy()
        guidance, scale, made_with = how_it_was_made(folder)
        return Run(images.name, guidance, scale, images.ids, values, features, made_with)

    def reference(self, source: str, size: tuple[int, int]) -> Gaussian:
        """Statistics of the pictures to compare with."""
        assert self.features is not None
        if source.endswith(".npz"):
            statistics = Gaussian.load(Path(source))
            if statistics.mean.shape != (self.features.dimensions,):
                raise DataError(
                    f"reference: {source} holds {statistics.mean.size} features; {self.features.identity} gives "
                    f"{self.features.dimensions}"
                )
            return statistics
        images = ImageSet.open(source)
        check_count(images, self.features, self.cfg.min_images)
        return Gaussian.of(self.of(images, self.features, self.compared_at(size))["features"].numpy())

    def compared_at(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) at which features are taken: the extractor's own, or that of the first picture."""
        side = self.features.side if self.features is not None else None
        return size if side is None else (side, side)


def image_size(images: ImageSet) -> tuple[int, int]:
    """(height, width) of the first picture: what all of them, and the reference, are brought to."""
    file = images.files[0]
    if isinstance(file, int):
        return 64, 64
    height, width, _ = read_file(file).shape
    return height, width


def check_count(images: ImageSet, features: Features, minimum: int | None) -> None:
    """Refuse sets that are too small for the covariance of the features.

    Raises:
        DataError: with how many are needed.
    """
    needed = features.dimensions + 1 if minimum is None else max(2, minimum)
    if len(images.files) < needed:
        dimensions, count = features.dimensions, len(images.files)
        raise DataError(
            f"{images.name}: {count} images are too few for the {features.distance}: a covariance of {dimensions} features "
            f"needs at least {dimensions + 1}. Add images, or set min_images={count} and compare only with numbers from as many"
        )


def how_it_was_made(folder: Path) -> tuple[str | None, float | None, dict[str, Any]]:
    """Guidance, scale and what else decides, from the folder's own files, if `goca.generate` made it."""
    found: list[dict[str, Any]] = []
    for name, parse in (("summary.json", json.loads), ("config.yaml", yaml.safe_load)):
        try:
            read = parse((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            read = None
        found.append(read if isinstance(read, dict) else {})
    summary, configuration = found
    return summary.get("method"), summary.get("guidance_scale"), besides_guidance(summary, configuration) if summary else {}


def apart(sources: Sequence[str]) -> list[str]:
    """A name for each folder: its own, with as many of those above as tell it from the others.

    Raises:
        ConfigError: one is given twice.

    >>> apart(["made/cfg", "made/goca"]), apart(["first/cfg", "second/cfg", "second/goca"])
    (['cfg', 'goca'], ['first/cfg', 'second/cfg', 'goca'])
    """
    paths = [Path(source).resolve() for source in sources]
    if twice := [source for source, path in zip(sources, paths, strict=True) if paths.count(path) > 1]:
        raise ConfigError(f"images: {twice[0]} is given twice; name each folder once")

    def name(path: Path, depth: int = 1) -> str:
        own = path.parts[-depth:]
        alone = depth >= len(path.parts) or not any(other.parts[-depth:] == own for other in paths if other != path)
        return "/".join(own) if alone else name(path, depth + 1)

    return [source if source.startswith("scenes:") else name(path) for source, path in zip(sources, paths, strict=True)]


def evaluate(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Measure every folder; returns the results, which are also written to `folder`.

    Raises:
        GocaError: any error that the user can fix.
    """
    sources = [cfg.images] if isinstance(cfg.images, str) else list(cfg.images or ())
    if not sources or (config.build(cfg, "extractor") is None and cfg.clip is None):
        raise ConfigError("give at least one folder (images=DIR) and at least one measure (extractor=scenes, clip=MODEL ...)")
    if cfg.resize not in ("crop", "squash"):
        raise ConfigError(f"resize: choices are crop and squash; got {cfg.resize!r}")
    for key, least in (("batch_size", 1), ("chunk", 1), ("bootstrap", 0)):
        if not isinstance(cfg[key], int) or cfg[key] < least:
            raise ConfigError(f"{key}: must be a whole number from {least}; got {cfg[key]!r}")
    if cfg.save_statistics and (cfg.reference is None or config.build(cfg, "extractor") is None):
        raise ConfigError("save_statistics keeps what an extractor sees in reference; give both, or leave save_statistics out")
    logger: Logger = config.build(cfg, "logger")
    names = apart(sources)
    sets = [replace(ImageSet.open(source), name=name) for source, name in zip(sources, names, strict=True)]
    size = image_size(sets[0])
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not cfg.progress) as progress:
        task = progress.add_task("measured", total=None)
        evaluation = Evaluation(cfg, Path(cfg.cache), lambda count: progress.advance(task, count))
        reference = None
        if evaluation.features is not None and cfg.reference is not None:
            for images in sets:
                check_count(images, evaluation.features, cfg.min_images)
            reference = evaluation.reference(cfg.reference, size)
            if cfg.save_statistics:
                reference.save(Path(cfg.save_statistics))
        runs = [evaluation.run(images, Path(source), size) for images, source in zip(sets, sources, strict=True)]

    distance = evaluation.features.distance if evaluation.features is not None else ""
    rounds = cfg.bootstrap if evaluation.features is None or evaluation.features.dimensions <= 256 else min(cfg.bootstrap, 20)
    rows = [row(run, runs, reference, distance, rounds) for run in runs]
    measures = list(dict.fromkeys(name for one in rows for name in one["measures"]))
    results: dict[str, Any] = {
        "runs": rows,
        "reference": cfg.reference,
        "reference_images": reference.count if reference is not None else None,
        "extractor": evaluation.features.identity if evaluation.features is not None else None,
        "clip": evaluation.clip.identity if evaluation.clip is not None else None,
        "resize": f"{cfg.resize} to {'x'.join(map(str, evaluation.compared_at(size)))} px, bicubic",
        "bootstrap": rounds,
    } | environment()
    folder.mkdir(parents=True, exist_ok=True)
    write_config(cfg, folder / "config.yaml")
    (folder / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    numbers = table(rows, measures)
    (folder / "results.md").write_text(numbers.markdown() + "\n", encoding="utf-8")
    figures = compare(dict(zip(names, map(Path, sources), strict=True)), cfg.figures.count)
    for name, figure in figures.items():
        figure.save(folder / f"{name}.png")
    show(rows, measures)
    summary = {"dataset": str(cfg.reference), "model": "pictures", "method": "evaluation", "protocol": "generation"}
    scalars = {f"{one['run']}/{name}": part["value"] for one in rows for name, part in one["measures"].items()}
    report = Report(
        folder,
        name=f"pictures {cfg.reference} evaluation",
        config=redact(config.plain(cfg)),
        scalars=scalars,
        texts=summary,
        tables={"runs": numbers},
        figures=figures,
        kind="evaluate_generation",
        tags=[summary["dataset"], "pictures", "generation", "method=evaluation"],
    )
    where = logger.log_safely(report)
    console.print(f"numbers   {folder / 'results.json'}", markup=False, highlight=False, soft_wrap=True)
    if where:
        console.print(f"logged    {where}", markup=False, highlight=False, soft_wrap=True)
    return results


def row(run: Run, runs: Sequence[Run], reference: Gaussian | None, distance: str, rounds: int) -> dict[str, Any]:
    """One run's numbers, and its differences to plain guidance."""
    baseline = baseline_of(run, runs)
    against = {} if baseline is None else differences(run, baseline, reference, distance, rounds)

    def plain(found: dict[str, Estimate]) -> dict[str, dict[str, float]]:
        return {name: estimate.json() for name, estimate in found.items()}

    return {
        "run": run.name,
        "guidance": run.guidance,
        "scale": run.scale,
        "pictures": len(run.ids),
        "measures": plain(estimates(run, reference, distance, rounds)),
        "minus_cfg": plain(against),
    }


def compare(folders: Mapping[str, Path], count: int) -> dict[str, Image.Image]:
    """Figures of the first prompts and seeds that all folders share, a column per folder: pictures, and maps if any."""
    manifests = [{origin(record): record for record in read_manifest(folder)} for folder in folders.values()]
    common = set.intersection(*map(set, manifests))
    shared = [record for key, record in manifests[0].items() if key in common][:count]
    if not shared:
        return {}
    prompts = [record["prompt"] for record in shared]
    pictures: dict[str, list[Image.Image]] = {}
    maps: dict[str, list[Image.Image]] = {}
    for name, folder in folders.items():
        pictures[name] = [Image.open(folder / record["file"]).convert("RGB") for record in shared]
        kept = [sorted(folder.glob(f"maps/{glob.escape(record['image_id'])}_[0-9]*.npz")) for record in shared]
        if all(kept):
            found = [load_maps(files[len(files) // 2]) for files in kept]  # of a step in the middle
            columns = zip(*found, strict=True)
            maps |= {f"{name}: {what}": list(column) for what, column in zip(("regions", "rate"), columns, strict=True)}
    figures = {"side_by_side": side_by_side(pictures, prompts)}
    return figures | ({"maps_side_by_side": side_by_side(maps, prompts)} if maps else {})


def show(rows: Sequence[dict[str, Any]], measures: Sequence[str]) -> None:
    """Print the numbers with their intervals; differences to plain guidance in brackets."""
    grid = Grid(Column("run", overflow="fold"), "pictures", *measures)
    for one in rows:
        cells = []
        for name in measures:
            value, against = one["measures"].get(name), one["minus_cfg"].get(name)
            text = "-" if value is None else f"{value['value']:.2f} ± {value['ci95']:.2f}"
            cells.append(text if against is None else f"{text}  ({against['value']:+.2f} ± {against['ci95']:.2f})")
        grid.add_row(escape(one["run"]), str(one["pictures"]), *cells)
    console.print(grid)


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "evaluate_generation"):
        evaluate(cfg, Path(HydraConfig.get().runtime.output_dir))
