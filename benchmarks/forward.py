"""Time and memory of one image beside the bare forward pass: `python -m benchmarks.forward model=sd15 size=512`.

Each variant runs in a process of its own, with a warm-up and medians, on a pipeline of full size with random weights:

bare           VAE encoding, text encoding, one denoiser forward; nothing observed
vanilla        mean over heads and layers, calibration, decision
goca           head and layer weights, calibration, decision
goca+affinity  the same with the affinity refinement
oracle         goca from materialised maps: every head's map of every layer kept until the end

One line per variant is appended to outputs/benchmarks/results.jsonl, ratios being taken within the run.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.random_pipelines import PIPELINES, build
from goca import config
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.sizes import to_pixels
from goca.method import plan_layers
from goca.prompts import Vocabulary
from goca.segmentor import Segmentor

WORDS = ("grass", "water", "circle", "star")
VARIANTS = {
    "bare": [],
    "vanilla": ["preset=vanilla", "refinement=none"],
    "goca": ["preset=goca", "refinement=none"],
    "goca+affinity": ["preset=goca"],
    "oracle": ["preset=goca", "refinement=none"],
}


@dataclass
class Options:
    model: str = "sd15"
    size: int = 512
    dtype: str = "float32"
    batch: int = 1
    classes: int = 4
    layers: str | None = None  # glob of the cross-attention layers, instead of the model's own
    threads: int = 2
    repeats: int = 3
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    variant: str | None = None  # set in the child processes
    save: bool = True


def measure(options: Options) -> dict[str, Any]:
    """Median seconds an image and peak bytes of one variant, in this process."""
    torch.set_num_threads(options.threads)
    assert options.variant is not None
    overrides = [
        f"model={options.model}",
        f"model.size={options.size}",
        f"model.dtype={options.dtype}",
        *VARIANTS[options.variant],
        *([f"model.layers.cross=['{options.layers}']"] if options.layers else []),
    ]
    names = [*WORDS, *(f"{WORDS[i % len(WORDS)]} {i}" for i in range(len(WORDS), options.classes))][: options.classes]
    table = ClassTable.from_names(names)
    segmentor = Segmentor.build(config.compose(overrides))
    segmentor.backbone.load(build(options.model, getattr(torch, options.dtype)) if options.model in PIPELINES else None)
    prompts = Vocabulary()(None, table, segmentor.backbone.text_segments)
    image = np.random.default_rng(0).integers(0, 255, (options.size, options.size, 3), dtype=np.uint8)
    rows = [(Sample(str(i), image, None, (), pixels=to_pixels(image, options.size)), prompts) for i in range(options.batch)]
    runs: dict[str, Callable[[], Any]] = {"bare": lambda: _bare(segmentor, rows), "oracle": lambda: _oracle(segmentor, rows)}
    run = runs.get(options.variant, lambda: segmentor.predict(rows, len(table), has_background=False))
    seconds = []
    for repeat in range(options.repeats + 1):
        segmentor.backbone.__dict__.pop("embeddings", None)  # encode the text again, as for a first image
        if repeat == 1:
            machine.reset_peak_memory()
            segmentor.timer.take()
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if repeat > 0:
            seconds.append((time.perf_counter() - started) / options.batch)
    stages = {stage: round(total / options.repeats / options.batch, 4) for stage, total in segmentor.timer.take().items()}
    found = {"prompts": len(prompts), "layers": len(segmentor.plan().cross)}
    return {"seconds": round(statistics.median(seconds), 4), "peak_bytes": machine.peak_bytes(), "stages": stages, **found}


@torch.inference_mode()
def _bare(segmentor: Segmentor, rows: list[Any]) -> Any:
    backbone = segmentor.backbone
    pixels = torch.stack([sample.pixels for sample, _ in rows]).to(backbone.torch_device, backbone.torch_dtype)
    with segmentor.timer("encode"):
        latents = backbone.encode_image(pixels)
        noisy = backbone.add_noise(latents, torch.randn_like(latents))
        conditioning = backbone.conditioning([prompts[0].text for _, prompts in rows])
    with segmentor.timer("forward"):
        return backbone.denoise(noisy, conditioning)


@torch.inference_mode()
def _oracle(segmentor: Segmentor, rows: list[Any]) -> Any:
    """Keep every call, then materialise every map: what the streaming statistics avoid."""
    from tests.helpers import oracle

    plan = plan_layers(segmentor.backbone, segmentor.method.aggregation)
    calls: dict[str, Any] = {}

    class Recorder:
        def __init__(self) -> None:
            self.plan = plan

        def observe(self, call: Any) -> None:
            calls[call.layer] = call

        def finish(self) -> None:
            return None

    backbone = segmentor.backbone
    pixels = torch.stack([sample.pixels for sample, _ in rows])
    texts, ids = [prompts[0].text for _, prompts in rows], [sample.image_id for sample, _ in rows]
    backbone.observe(pixels, texts, ids, 0, Recorder())  # type: ignore[arg-type]
    query = calls[plan.reference].query
    reference = query.transpose(2, 3).flatten(1, 2).unflatten(2, calls[plan.reference].grid).float()
    cross = {name: calls[name] for name in plan.cross}
    maps, _ = oracle.aggregate(
        segmentor.method.aggregation, cross, {name: calls[own] for name, own in plan.cross.items()}, reference
    )
    return [segmentor.method.calibration(token_maps, prompts[0]) for token_maps, (_, prompts) in zip(maps, rows, strict=True)]


def main() -> None:
    options: Options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.from_cli()))  # type: ignore[assignment]
    if options.variant is not None:
        print(json.dumps(measure(options)))
        return
    table = Table(title=f"{options.model}, {options.size} px, {options.dtype}, batch {options.batch}")
    for column in ("variant", "s / image", "ratio", "peak GB", "ratio ", "stages"):
        table.add_column(column)
    shared = {key: getattr(options, key) for key in ("model", "size", "dtype", "batch", "classes")}
    bare: dict[str, Any] = {}
    for variant in options.variants:
        found = machine.measured_apart("benchmarks.forward", [f"variant={variant}", *sys.argv[1:]])
        bare = bare or found
        found |= machine.beside(found, bare)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if options.save:
            machine.append({"variant": variant, **shared, "device": device, **found, **machine.context(options.threads)})
        table.add_row(
            variant, f"{found['seconds']:.3f}", f"{found['ratio_time']:.3f}", f"{found['peak_bytes'] / 1e9:.2f}",
            f"{found['ratio_memory']:.3f}", "  ".join(f"{name} {value}" for name, value in found["stages"].items()),
        )  # fmt: skip
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
