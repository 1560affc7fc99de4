"""Time and memory of a guided denoising step beside plain guidance: `python -m benchmarks.generation model=sd15 size=512`.

Each variant runs in a process of its own, `rounds` times by turns, of which the median counts. A step is the time from one
denoiser call to the next: the forward with both halves, regions and rate, the scheduler; the median is taken, without the first
steps. On a CPU it is processor time, which work beside it disturbs least. Memory is the peak before decoding. A line per
variant is appended to outputs/benchmarks/results.jsonl, with ratios taken within the run.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.random_pipelines import PIPELINES, build
from goca import config, generate
from goca.generation.pipeline import Request

VARIANTS = {
    "cfg": ["guidance=cfg"],
    "scfg": ["guidance=scfg"],
    "goca": ["guidance=goca"],
    "goca, every 2nd step": ["guidance=goca", "guidance_every=2"],
    "goca, 64 query rows": ["guidance=goca", "aggregation.rows=64"],
}
TEXT = "a circle and a star on grass, water"


@dataclass
class Options:
    model: str = "scenes_unet"
    size: int = 64
    dtype: str = "float32"
    batch: int = 8
    steps: int = 11
    rounds: int = 1
    threads: int = 2
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    variant: str | None = None  # set in the child processes
    save: bool = True


def measure(options: Options) -> dict[str, Any]:
    """Median seconds a step and picture, and peak bytes, of one variant in this process."""
    torch.set_num_threads(options.threads)
    assert options.variant is not None
    settings = [
        f"model={options.model}",
        f"model.size={options.size}",
        f"model.dtype={options.dtype}",
        f"steps={options.steps}",
    ]
    generator = generate.build(config.compose([*settings, *VARIANTS[options.variant]], "generate"))
    generator.backbone.load(build(options.model, getattr(torch, options.dtype)) if options.model in PIPELINES else None)
    generator.prepare()
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    marks: list[float] = []
    peaks: list[int] = []

    def mark(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not marks:
            machine.reset_peak_memory()
        peaks.append(machine.peak_bytes())
        marks.append(clock())

    generator.backbone.denoiser.register_forward_pre_hook(mark)
    generator.backbone.pipeline.vae.decode = _stop
    try:
        generator([Request(str(i), TEXT, i) for i in range(options.batch)])
    except _Decoding:
        mark()
    pairs = (len(marks) - 1) // 2
    # Two steps together, so that variants which work at every second one are counted in full.
    seconds = [(marks[2 * i + 2] - marks[2 * i]) / 2 / options.batch for i in range(1 if pairs > 2 else 0, pairs)]
    return {"seconds": round(statistics.median(seconds), 5), "peak_bytes": peaks[-1]}


class _Decoding(Exception):  # noqa: N818
    """The pictures are denoised; decoding is the same for all variants."""


def _stop(*_: Any, **__: Any) -> None:
    raise _Decoding


def main() -> None:
    options: Options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.from_cli()))  # type: ignore[assignment]
    if options.variant is not None:
        print(json.dumps(measure(options)))
        return
    table = Table(title=f"{options.model}, {options.size} px, {options.dtype}, batch {options.batch}")
    for column in ("guidance", "s / step and picture", "ratio", "peak GB", "ratio "):
        table.add_column(column)
    shared = {key: getattr(options, key) for key in ("model", "size", "dtype", "batch", "steps", "rounds")}
    apart = {variant: [*sys.argv[1:], f"variant={variant!r}"] for variant in options.variants}
    rounds = [
        {variant: machine.measured_apart("benchmarks.generation", arguments) for variant, arguments in apart.items()}
        for _ in range(options.rounds)
    ]
    plain: dict[str, Any] = {}
    for variant in options.variants:
        found = {
            "seconds": statistics.median(one[variant]["seconds"] for one in rounds),
            "peak_bytes": max(one[variant]["peak_bytes"] for one in rounds),
        }
        plain = plain or found
        found |= machine.beside(found, plain)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if options.save:
            result = {"benchmark": "generation", "variant": variant, **shared, "device": device, **found}
            machine.append({**result, **machine.context(options.threads)})
        peak = f"{found['peak_bytes'] / 1e9:.2f}"
        table.add_row(variant, f"{found['seconds']:.4f}", f"{found['ratio_time']:.3f}", peak, f"{found['ratio_memory']:.3f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
