"""Full-size models with random weights on a GPU, everything beside the bare forward: `python -m benchmarks.gpu --out gpu.json`.

Bare is image encoding and one denoiser forward with nothing observed. The other variants add their statistics, calibration,
refinement and decision. All variants of a model run interleaved in one process (A B C A B C ...), and ratios are taken within a
round, so that clocks and other work cancel; the median over rounds is reported, with the smallest and the largest.

Text embeddings are random: text encoders are not part of what is measured. `--models sd15:1,8 flux_dev:1` chooses models and
batch sizes, `--variants` the variants, `denoiser.KEY=VALUE` replaces values of the denoiser's configuration.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks import machine
from goca import config
from goca.attention.statistics import AttentionStatistics
from goca.backbones.loading import architectures
from goca.backbones.loading.pipelines import choose_device
from goca.backbones.observable import observable_layers
from goca.method.plan import plan_layers
from goca.method.refinement import RefinementContext
from goca.prompts import sources
from goca.prompts.prompt import TextSegment
from goca.scenes.tokenizer import small_clip_tokenizer

WORDS = ["circle", "heart", "grass"]
# name -> (overrides, precision of the statistics)
VARIANTS: dict[str, tuple[list[str], str]] = {
    "bare": ([], "auto"),
    "vanilla": (["preset=vanilla", "refinement=none"], "auto"),
    "goca": (["refinement=none"], "auto"),
    "goca+affinity": ([], "auto"),
    "goca+affinity, all rows": (["aggregation.rows=all"], "auto"),
    "goca+affinity, float32": (["aggregation.rows=all"], "float32"),
}
MODELS = {"sd15": (1, 8), "sdxl": (1, 8), "pixart_sigma": (1, 8), "flux_dev": (1, 8)}
Run = Callable[[], object]


def backbone_of(model: str, changes: dict[str, Any]) -> Any:
    """The backbone around fresh half-precision weights on the device, with a tokenizer that fills its text axis."""
    backbone = config.build(config.compose([f"model={model}", "model.dtype=bfloat16"]), "model").sketch()
    tokens = max(layer.tokens for layer in observable_layers(backbone))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    pipeline = architectures.skeleton(backbone.checkpoint, str(choose_device("auto")), changes)
    torch.set_default_dtype(torch.float32)
    backbone.load(pipeline)
    backbone.__dict__["text_segments"] = (TextSegment(small_clip_tokenizer(max_length=tokens), tokens),)
    text = ", ".join(WORDS)
    blank = backbone.blank_conditioning()
    backbone.embeddings[text] = {key: torch.randn_like(part) if part.ndim > 2 else part for key, part in blank.items()}
    return backbone


def bare(backbone: Any, batch: int) -> Run:
    """Image encoding and one forward."""
    pixels = _pixels(backbone, batch)
    texts = [", ".join(WORDS)] * batch

    @torch.inference_mode()
    def run() -> object:
        latents = backbone.encode_image(pixels.to(backbone.torch_device, backbone.torch_dtype))
        noisy = backbone.add_noise(latents, torch.randn_like(latents))
        return backbone.denoise(noisy, backbone.conditioning(texts))

    return run


def observed(backbone: Any, model: str, batch: int, overrides: list[str], precision: str) -> Run:
    """The same forward with a method's statistics, calibration, refinement and decision."""
    cfg = config.compose([f"model={model}", *overrides])
    aggregation, calibration, refinement, decision = (
        config.build(cfg, part) for part in ("aggregation", "calibration", "refinement", "decision")
    )
    needs = refinement.needs
    pixels, texts = _pixels(backbone, batch), [", ".join(WORDS)] * batch
    table, prompts = sources.from_text(texts[0], backbone.text_segments)
    ids = [str(image) for image in range(batch)]
    plan = plan_layers(backbone, aggregation, needs.self_attention, needs.features)

    @torch.inference_mode()
    def run() -> object:
        collected = AttentionStatistics(aggregation, plan, cfg.attention.max_bytes, precision=precision)  # type: ignore[arg-type]
        seen = backbone.observe(pixels, texts, ids, 0, collected)
        labels = []
        for image in range(batch):
            maps = calibration(seen.token_maps[image], prompts[0])
            context = RefinementContext(maps.size, seen.self_attention(image), {}, pixels[image], cfg.attention.max_bytes)
            labels.append(decision(refinement.refine(maps, context), (backbone.size, backbone.size), len(table), False))
        return labels

    return run


def _pixels(backbone: Any, batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, backbone.size, backbone.size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def measure(backbone: Any, model: str, batch: int, variants: list[str], rounds: int) -> list[dict[str, Any]]:
    """One row per variant: median seconds, ratio to bare within the round, peak memory."""
    runs = {
        name: bare(backbone, batch) if name == "bare" else observed(backbone, model, batch, *VARIANTS[name])
        for name in variants
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks = dict.fromkeys(runs, 0)
    warm = 2 if rounds > 1 else 0
    for round_ in range(rounds + warm):  # two that warm up: kernels are compiled and memory is reserved
        for name, run in runs.items():
            machine.reset_peak_memory()
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            if round_ >= warm:
                seconds[name].append(time.perf_counter() - start)
                peaks[name] = max(peaks[name], machine.peak_bytes())
    rows = []
    for name, taken in seconds.items():
        ratios = sorted(mine / other for mine, other in zip(taken, seconds["bare"], strict=True))
        rows.append(
            {
                "benchmark": "gpu", "model": model, "batch": batch, "variant": name, "size": backbone.size, "rounds": rounds,
                "ratio_time": round(statistics.median(ratios), 4), "ratio_range": [round(ratios[0], 4), round(ratios[-1], 4)],
                "seconds": round(statistics.median(taken), 5), "peak_bytes": peaks[name],
                "ratio_memory": round(peaks[name] / max(1, peaks["bare"]), 4),
            }
        )  # fmt: skip
    return rows


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", default=[f"{name}:{','.join(map(str, sizes))}" for name, sizes in MODELS.items()]
    )
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/gpu.json"))
    parser.add_argument("changes", nargs="*", help="denoiser.KEY=VALUE")
    options = parser.parse_args()
    changes = OmegaConf.to_object(OmegaConf.from_dotlist([change.removeprefix("denoiser.") for change in options.changes]))
    where = machine.context(torch.get_num_threads())
    rows: list[dict[str, Any]] = []
    for entry in options.models:
        model, _, batches = entry.partition(":")
        backbone = backbone_of(model, changes)  # type: ignore[arg-type]
        for batch in (int(size) for size in batches.split(",")):
            for row in measure(backbone, model, batch, ["bare", *(v for v in options.variants if v != "bare")], options.rounds):
                rows.append(row | where)
                low, high = row["ratio_range"]
                print(
                    f"{model:14} batch {batch}  {row['variant']:26} {row['ratio_time']:.3f} ({low:.3f} ... {high:.3f})"
                    f"  {row['seconds']:.4f} s  {row['peak_bytes'] / 2**30:.2f} GiB ({row['ratio_memory']:.3f})",
                    flush=True,
                )
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(rows, indent=1))
        del backbone
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
