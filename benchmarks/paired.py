"""Full-size models with random weights, everything beside the bare forward: `python -m benchmarks.paired --models sd15:1`.

Bare is image encoding and one denoiser forward with nothing observed. The other variants add their statistics, calibration,
refinement and decision; two of them keep all maps until the end, as other tools do. All variants of a model run interleaved in
one process (A B C A B C ...), and ratios are taken within a round, so that clocks and other work cancel; the median over rounds
is reported, with the smallest and the largest. Seconds of processors are told as well: with OMP_NUM_THREADS=1 they say on a CPU
that others use too what the clock cannot. Peak memory is that of the GPU's allocator, or on a CPU the resident memory of a
further process for each variant (`--memory`).

Text embeddings are random: text encoders are not part of what is measured. `--models sd15:1,8 flux_dev:1` chooses models and
batch sizes, `--variants` the variants; `model.size=512` and other overrides go to all of them, `denoiser.KEY=VALUE` replaces
values of the denoiser's configuration.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks import machine
from benchmarks.stored_maps import StoredDaam, StoredGoca
from goca import config
from goca.attention.mixture import MixtureStatistics
from goca.attention.statistics import AttentionStatistics
from goca.backbones.loading import architectures
from goca.backbones.loading.pipelines import choose_device
from goca.backbones.observable import observable_layers
from goca.method.aggregation.mixture import Mixture
from goca.method.plan import plan_layers
from goca.method.refinement import RefinementContext
from goca.prompts import sources
from goca.prompts.prompt import TextSegment
from goca.runs.machine import keep_freed_memory
from goca.scenes.tokenizer import small_clip_tokenizer

WORDS = ["circle", "heart", "grass"]
# name -> (overrides, precision of the statistics)
VARIANTS: dict[str, tuple[list[str], str]] = {
    "bare": ([], "auto"),
    "daam": (["preset=daam"], "auto"),
    "daam, maps stored": (["preset=daam"], "stored"),
    "goca, maps stored": (["refinement=none"], "stored"),
    "vanilla": (["preset=vanilla", "refinement=none"], "auto"),
    "goca": (["refinement=none"], "auto"),
    "goca+affinity": ([], "auto"),
    "goca+affinity, all rows": (["aggregation.rows=all"], "auto"),
    "goca+affinity, float32": (["aggregation.rows=all"], "float32"),
}
MODELS = {"sd15": (1,)}
Run = Callable[[], object]


def backbone_of(model: str, changes: dict[str, Any], dtype: str = "bfloat16", overrides: Sequence[str] = ()) -> Any:
    """The backbone around fresh weights on the device, with a tokenizer that fills its text axis."""
    backbone = config.build(config.compose([f"model={model}", f"model.dtype={dtype}", *overrides]), "model").sketch()
    tokens = max(layer.tokens for layer in observable_layers(backbone))
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))  # so that half precision needs no copy in full precision first
    pipeline = architectures.skeleton(backbone.checkpoint, str(choose_device("auto")), changes)
    torch.set_default_dtype(torch.float32)
    backbone.load(pipeline)
    keep_freed_memory()  # as a run does
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


def observed(
    backbone: Any, model: str, batch: int, overrides: list[str], precision: str, maps_alone: bool = False
) -> Callable[[], Any]:
    """The same forward with a method's statistics, calibration, refinement and decision; the run returns labels, or maps."""
    cfg = config.compose([f"model={model}", *overrides])
    aggregation, calibration, refinement, decision = (
        config.build(cfg, part) for part in ("aggregation", "calibration", "refinement", "decision")
    )
    needs = refinement.needs
    pixels, texts = _pixels(backbone, batch), [", ".join(WORDS)] * batch
    table, prompts = sources.from_text(texts[0], backbone.text_segments)
    ids = [str(image) for image in range(batch)]
    plan = plan_layers(backbone, aggregation, needs.self_attention, needs.features)

    def collector() -> Any:
        if precision == "stored":
            daam = isinstance(aggregation, Mixture)
            return StoredDaam(plan, aggregation) if daam else StoredGoca(plan, aggregation)
        if isinstance(aggregation, Mixture):
            return MixtureStatistics(aggregation, plan, cfg.attention.max_bytes)
        return AttentionStatistics(aggregation, plan, cfg.attention.max_bytes, precision=precision)  # type: ignore[arg-type]

    @torch.inference_mode()
    def run() -> object:
        seen = backbone.observe(pixels, texts, ids, 0, collector())
        stored = isinstance(seen, torch.Tensor)
        if maps_alone:
            return seen if stored else torch.stack([*seen.token_maps])
        labels = []
        for image in range(batch):
            maps = calibration(seen[image] if stored else seen.token_maps[image], prompts[0])
            layers = {} if stored else seen.self_attention(image)
            context = RefinementContext(maps.size, layers, {}, pixels[image], cfg.attention.max_bytes)
            labels.append(decision(refinement.refine(maps, context), (backbone.size, backbone.size), len(table), False))
        return labels

    return run


def check_stored(backbone: Any, model: str, variants: Sequence[str]) -> None:
    """What keeps all maps has to give the same ones, or its time says nothing; raises SystemExit."""
    for name in variants:
        overrides, precision = VARIANTS[name]
        if precision != "stored":
            continue
        exact = [*overrides, "aggregation.rows=all"] if "preset=daam" not in overrides else overrides
        streamed = observed(backbone, model, 1, exact, "float32", maps_alone=True)().float()
        kept = observed(backbone, model, 1, exact, "stored", maps_alone=True)().float()
        kept = kept.unflatten(-1, streamed.shape[-2:]) if kept.ndim < streamed.ndim else kept
        error = float((streamed - kept).abs().max() / streamed.abs().max())
        if error > 1e-2:
            raise SystemExit(f"{name}: its maps differ from the streaming ones by {error:.1e} of the largest value")
        print(f"{model}: {name} agrees with the streaming maps to {error:.1e} of the largest value", flush=True)


def _pixels(backbone: Any, batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, backbone.size, backbone.size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def measure(backbone: Any, model: str, batch: int, variants: list[str], rounds: int) -> list[dict[str, Any]]:
    """One row per variant: median seconds, ratio to bare within the round, peak memory."""
    runs = {
        name: bare(backbone, batch) if name == "bare" else observed(backbone, model, batch, *VARIANTS[name])
        for name in variants
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    peaks = dict.fromkeys(runs, 0)
    # What warms up: on a GPU kernels are compiled and memory is reserved, twice.
    warm = (2 if torch.accelerator.is_available() else 1) if rounds > 1 else 0
    for round_ in range(rounds + warm):
        for name, run in runs.items():
            machine.reset_peak_memory()
            _wait()
            start, busy = time.perf_counter(), time.process_time()
            run()
            _wait()
            if round_ >= warm:
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - busy)
                peaks[name] = max(peaks[name], machine.peak_bytes())
                print(
                    f"{model} batch {batch} round {round_ - warm + 1}: {name} {seconds[name][-1]:.3f} s"
                    f" ({processor[name][-1]:.3f} s of processors)",
                    flush=True,
                )
    rows = []
    for name, taken in seconds.items():
        busy = sorted(mine / other for mine, other in zip(processor[name], processor["bare"], strict=True))
        ratios = sorted(mine / other for mine, other in zip(taken, seconds["bare"], strict=True))
        beyond = [mine - other for mine, other in zip(taken, seconds["bare"], strict=True)]
        rows.append(
            {
                "benchmark": "paired", "model": model, "batch": batch, "variant": name, "size": backbone.size, "rounds": rounds,
                "ratio_time": round(statistics.median(ratios), 4), "ratio_range": [round(ratios[0], 4), round(ratios[-1], 4)],
                "seconds": round(statistics.median(taken), 5), "peak_bytes": peaks[name],
                "beyond_bare": round(statistics.median(beyond), 5),
                "processor_seconds": round(statistics.median(processor[name]), 5),
                "ratio_processor": round(statistics.median(busy), 4),
                "ratio_memory": round(peaks[name] / max(1, peaks["bare"]), 4),
            }
        )  # fmt: skip
    return rows


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def peaks_apart(model: str, batch: int, variants: list[str], options: argparse.Namespace) -> dict[str, int]:
    """Peak resident memory of each variant in a process of its own."""
    found = {}
    for name in variants:
        arguments = ["--models", f"{model}:{batch}", "--dtype", options.dtype, "--peak", name, *options.changes]
        found[name] = int(machine.measured_apart("benchmarks.paired", arguments)["peak_bytes"])
    return found


def _backbone(model: str, options: argparse.Namespace) -> Any:
    changes = [change.removeprefix("denoiser.") for change in options.changes if change.startswith("denoiser.")]
    overrides = [change for change in options.changes if not change.startswith("denoiser.")]
    return backbone_of(model, OmegaConf.to_object(OmegaConf.from_dotlist(changes)), options.dtype, overrides)  # type: ignore[arg-type]


def _peak(model: str, options: argparse.Namespace) -> int:
    """Of one variant, in this process: the second run, so that nothing of building the model is counted."""
    name, _, batch = model.partition(":")
    backbone = _backbone(name, options)
    run = (
        bare(backbone, int(batch)) if options.peak == "bare" else observed(backbone, name, int(batch), *VARIANTS[options.peak])
    )
    run()
    machine.reset_peak_memory()
    run()
    return machine.peak_bytes()


def main(models: Mapping[str, Sequence[int]] = MODELS, out: str = "paired.json") -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", default=[f"{name}:{','.join(map(str, sizes))}" for name, sizes in models.items()]
    )
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--memory", action="store_true", help="on a CPU: peak memory too, each variant in a process of its own")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks", out))
    parser.add_argument("changes", nargs="*", help="KEY=VALUE of the model, denoiser.KEY=VALUE of its architecture")
    options = parser.parse_intermixed_args()
    if options.peak:
        print(json.dumps({"peak_bytes": _peak(options.models[0], options)}))
        return
    where = machine.context(torch.get_num_threads())
    rows: list[dict[str, Any]] = []
    for entry in options.models:
        model, _, batches = entry.partition(":")
        backbone = _backbone(model, options)
        variants = ["bare", *(name for name in options.variants if name != "bare")]
        check_stored(backbone, model, variants)
        for batch in (int(size) for size in batches.split(",")):
            found = measure(backbone, model, batch, variants, options.rounds)
            if options.memory:
                peaks = peaks_apart(model, batch, variants, options)
                for row in found:
                    peak = peaks[row["variant"]]
                    row |= {"peak_bytes": peak, "ratio_memory": round(peak / peaks["bare"], 4)}
            for row in found:
                rows.append(row | {"dtype": options.dtype, "changes": options.changes} | where)
                low, high = row["ratio_range"]
                print(
                    f"{model:14} batch {batch}  {row['variant']:26} {row['ratio_time']:.3f} ({low:.3f} ... {high:.3f})"
                    f"  {row['seconds']:.4f} s  processors {row['ratio_processor']:.3f}"
                    f"  {row['peak_bytes'] / 2**30:.2f} GiB ({row['ratio_memory']:.3f})",
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
