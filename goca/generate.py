"""`python -m goca.generate model=sd15 guidance=goca prompts=captions.csv`: make pictures with guided diffusion."""

from __future__ import annotations

import re
import sys

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    # `prompts=FILE` names a file here, where Hydra would look for an option of goca.run's group `prompts`.
    sys.argv[1:] = [re.sub(r"^prompts=", "prompts.source=", argument) for argument in sys.argv[1:]]
    start("goca.generate", "generate")

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from goca import config
from goca.config.redact import redact, write_config
from goca.data.datamodule import parse_shard
from goca.errors import ConfigError
from goca.generation.guidance import RegionGuidance, Step
from goca.generation.labels import LabelFolder
from goca.generation.pictures import PictureFolder, batches, fingerprint, read_manifest
from goca.generation.pipeline import Generator, Request
from goca.generation.prompts import read_prompts
from goca.generation.roles import token_roles
from goca.generation.show import Snapshot, side_by_side, snapshots_figure
from goca.method import Method
from goca.runs.provenance import checkpoint_identity, environment, keep_commits
from goca.runs.report import Logger, Report
from goca.runs.table import Table
from goca.timing import peak_memory_bytes

console = Console(emoji=False)
# Keys of the model section that change no generated picture.
_WITHOUT_EFFECT = ("allow_pickle", "device", "placement", "prompt_cache", "text_encoders", "timestep")


def settings(cfg: DictConfig) -> dict[str, Any]:
    """What decides how the picture of a prompt and a seed looks."""
    plain = config.plain(cfg)
    keys = ["model", "guidance", "steps", "size", "scheduler", "scheduler_options", "pipeline_options"]
    if "every" in plain["guidance"]:
        keys += ["aggregation", "calibration", "refinement"]
    chosen = {key: plain[key] for key in keys}
    chosen["model"] = {key: value for key, value in plain["model"].items() if key not in _WITHOUT_EFFECT}
    return chosen


def build(cfg: DictConfig) -> Generator:
    """Every part from the composed configuration; reads no weights.

    Raises:
        ConfigError: a key, value or type that does not fit.
    """
    method = Method.from_config(cfg)
    size = config.plain(cfg).get("size")
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise ConfigError(f"size: give [height,width] in pixels, such as [512,768]; got {size}")
    for key in ("steps", "batch_size"):
        if not isinstance(cfg[key], int) or cfg[key] < 1:
            raise ConfigError(f"{key}: must be a whole number from 1; got {cfg[key]!r}")
    if cfg.model.get("text_encoders") == "first":
        raise ConfigError("model.text_encoders: generation encodes prompts as it goes; use resident")
    return Generator(
        backbone=config.build(cfg, "model"),
        guidance=config.build(cfg, "guidance"),
        method=method,
        **cfg.attention,
        steps=cfg.steps,
        size=None if size is None else (size[0], size[1]),
        scheduler=cfg.scheduler,
        scheduler_options=config.plain(cfg.scheduler_options),
        options=config.plain(cfg.pipeline_options),
    )


def check_save_maps(calls: Any, count: int) -> None:
    """Refuse denoiser calls that will not occur."""
    if not isinstance(calls, list) or not all(isinstance(call, int) and 0 <= call < count for call in calls):
        raise ConfigError(f"save_maps: give denoiser calls from 0 to {count - 1}, such as [0,{count - 1}]; got {calls!r}")


def _say_idle(cfg: DictConfig) -> None:
    """Say what has no effect; it may be there for other jobs of a sweep."""
    idle = []
    if not cfg.save_labels:
        given = [name for name in cfg.labels if cfg.labels[name] is not None]
        idle += [f"labels.{name}: no labels are made without save_labels=true" for name in given]
    if config.plain(cfg.save_maps) and "every" not in cfg.guidance:
        idle.append(f"save_maps: guidance={cfg.guidance.name} finds no regions, so that no maps are kept")
    for reason in idle:
        console.print(f"warning: {reason}", style="yellow", markup=False)


def _scheduler(generator: Generator) -> str:
    return type(generator.backbone.pipeline.scheduler).__name__


def generate(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Make what is missing of the pictures in `folder`; returns the summary, which is also written there.

    Raises:
        GocaError: any error that the user can fix.
    """
    generator = build(cfg)
    logger: Logger = config.build(cfg, "logger")
    source = config.plain(cfg.prompts)["source"]
    requests = read_prompts(source, cfg.limit, cfg.seed, cfg.seeds, cfg.negative_prompt or "")
    _say_idle(cfg)
    pictures = PictureFolder(folder, fingerprint(settings(cfg)))
    labels = None
    if cfg.save_labels:
        chosen = config.plain(cfg.labels)
        plain = config.plain(cfg)
        # The time step is that of the evaluation whose self-attention refines.
        decisive = {key: plain[key] for key in ("aggregation", "calibration", "refinement")}
        decisive["timestep"] = plain["model"].get("timestep")
        labels = LabelFolder(
            pictures, requests, generator.method, chosen["classes"], chosen["background"], fingerprint(decisive)
        )

    def unfinished(batch: list[Request]) -> list[Request]:
        """Checks every picture that is there, and its label."""
        return [
            request
            for request in batch
            if not pictures.is_finished(request) or (labels is not None and not labels.is_finished(request))
        ]

    own = batches(requests, cfg.batch_size, parse_shard(cfg.shard))
    todo = [batch for batch in own if unfinished(batch)]
    if todo:
        keep_commits(generator.backbone, pictures.checkpoint())
        for read in (
            generator.backbone.inspect,
            generator.backbone.load,
        ):  # what configurations can tell is told before weights
            read()
            generator.prepare(requests)
            check_save_maps(config.plain(cfg.save_maps), generator.count_calls())
        pictures.begin(checkpoint_identity(generator.backbone) | {"scheduler": _scheduler(generator)})
    write_config(cfg, folder / "config.yaml")
    figures = _draw(generator, pictures, todo, cfg, labels)

    shown = [request for request in requests if pictures.file(request.image_id).exists()][: cfg.figures.count]
    if shown:
        images = [Image.open(pictures.file(request.image_id)).convert("RGB") for request in shown]
        figures["pictures"] = side_by_side({cfg.guidance.name: images}, [request.text for request in shown])
    if labels is not None:  # of this shard: another one's pictures may be there and their labels not yet
        labelled = {request.image_id for batch in own for request in batch}
        figures |= {f"labels/{each.image_id}": labels.figure(each) for each in shown if each.image_id in labelled}
    for name, figure in figures.items():
        figure.save(folder / f"figure_{name.replace('/', '_')}.png")
    wanted = {request.image_id for request in requests}
    records = [record for record in read_manifest(folder) if record["image_id"] in wanted]
    seconds = [record["seconds"] for record in records if record["seconds"] is not None]
    summary: dict[str, Any] = {
        "dataset": source if isinstance(source, str) and len(source) < 200 else f"{len(requests)} prompts",
        "model": generator.backbone.name,
        "method": cfg.guidance.name,
        "protocol": "generation",
        "guidance_scale": generator.guidance.scale,
        "guidance_every": getattr(generator.guidance, "every", None),
        "steps": cfg.steps,
        "size": list(generator.dimensions),
        "scheduler": _scheduler(generator) if todo else _written(folder).get("scheduler"),
        "seed": cfg.seed,
        "seeds": cfg.seeds,
        "pictures": len(records),
        "prompts": len(requests),
        "seconds_per_picture": round(sum(seconds) / len(seconds), 4) if seconds else None,
        "settings": pictures.settings,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    summary |= pictures.checkpoint() | environment()
    pictures.write_json("summary.json", summary)
    table = Table(("image_id", "prompt", "seed", "seconds"), tuple(_row(record) for record in records))
    report = Report(
        folder,
        name=f"{summary['model']} {summary['dataset']} {summary['method']}",
        config=redact(config.plain(cfg)),
        scalars={key: value for key, value in summary.items() if isinstance(value, (int, float))},
        texts={key: value for key, value in summary.items() if isinstance(value, str)},
        tables={"pictures": table},
        figures=figures,
        kind="generate",
        tags=[summary["dataset"], summary["model"], "generation", f"method={summary['method']}"],
    )
    where = logger.log_safely(report)
    console.print(
        f"pictures  {pictures.images}  ({len(records)} of {len(requests)})", markup=False, highlight=False, soft_wrap=True
    )
    if where:
        console.print(f"logged    {where}", markup=False, highlight=False, soft_wrap=True)
    return summary


def _written(folder: Path) -> dict[str, Any]:
    """The summary that an earlier run left."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _draw(
    generator: Generator, pictures: PictureFolder, todo: list[list[Request]], cfg: DictConfig, labels: LabelFolder | None
) -> dict[str, Image.Image]:
    """Make the pictures of every batch; figures of the first ones' region and rate maps by image id, where they are wanted."""
    figures: dict[str, Image.Image] = {}
    save_maps = set(config.plain(cfg.save_maps))
    watching = bool(save_maps) and isinstance(generator.guidance, RegionGuidance)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not cfg.progress) as progress:
        task = progress.add_task("pictures", total=sum(len(batch) for batch in todo))
        for batch in todo:
            kept: dict[int, list[Snapshot]] = defaultdict(list)

            def watch(picture: int, step: Step, kept: dict[int, list[Snapshot]] = kept) -> None:
                if step.index in save_maps:
                    kept[picture].append(Snapshot.of(step))

            started = time.perf_counter()
            with labels.watch(generator.backbone, **cfg.attention) if labels else nullcontext() as seen:
                images = generator(batch, watch if watching else None)
            seconds = (time.perf_counter() - started) / len(batch)
            for i, (request, image) in enumerate(zip(batch, images, strict=True)):
                if not pictures.is_finished(request):
                    pictures.save(request, image, seconds)
                if labels is not None and seen is not None and not labels.is_finished(request):
                    labels.save(request, image, seen[i])
                if kept[i]:
                    tokens = _save_maps(generator, pictures, request, kept[i])
                    if len(figures) < cfg.figures.count:
                        figures[f"maps/{request.image_id}"] = snapshots_figure(image, kept[i], tokens)
                progress.advance(task)
    return figures


def _save_maps(
    generator: Generator, pictures: PictureFolder, request: Request, snapshots: Sequence[Snapshot]
) -> tuple[str, ...]:
    """Write the kept steps of one picture as arrays; returns the tokens that regions belong to."""
    tokens = token_roles(request.text, generator.backbone.text_segments).tokens
    for snapshot in snapshots:
        pictures.write(pictures.path / "maps" / f"{request.image_id}_{snapshot.index:03}.npz", snapshot.npz(tokens))
    return tokens


def _row(record: dict[str, Any]) -> tuple[str, str, int, float | None]:
    return record["image_id"], record["prompt"], record["seed"], record["seconds"]


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "generate"):
        generate(cfg, Path(HydraConfig.get().runtime.output_dir))
