"""One image through a full-size model with random weights, beside its bare forward: `python -m benchmarks.full_size sd15`.

The denoiser and the autoencoder are built from their published configurations; text embeddings are random, so that no text
encoder is needed. Bare is image encoding and one forward with nothing observed; goca is `Segmentor.segment` with the model's
constants. Each runs in a process of its own. Further arguments are overrides, such as `model.dtype=bfloat16`;
`denoiser.KEY=VALUE` replaces a value of the denoiser's configuration: `flux_dev denoiser.num_attention_heads=6` keeps all 57
layers, a quarter as wide.

One line per variant is appended to outputs/benchmarks/results.jsonl, ratios being taken within the run.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from benchmarks import machine
from goca.backbones.loading import architectures
from goca.backbones.loading.pipelines import choose_dtype
from goca.backbones.observable import observable_layers
from goca.config import compose
from goca.prompts.prompt import TextSegment
from goca.scenes.tokenizer import small_clip_tokenizer
from goca.segmentor import Segmentor

WORDS = ["circle", "heart", "grass"]
RUNS = 2


def segmentor_of(model: str, arguments: list[str]) -> Segmentor:
    """A segmentor around fresh weights, with a tokenizer that fills the model's text axis."""
    changes = OmegaConf.from_dotlist([a.removeprefix("denoiser.") for a in arguments if a.startswith("denoiser.")])
    overrides = [argument for argument in arguments if not argument.startswith("denoiser.")]
    segmentor = Segmentor.build(compose([f"model={model}", *overrides]))
    backbone: Any = segmentor.backbone.sketch()
    tokens = max(layer.tokens for layer in observable_layers(backbone))
    dtype = choose_dtype(backbone.dtype, torch.device("cpu"))
    torch.manual_seed(0)
    pipeline = architectures.skeleton(backbone.checkpoint, "cpu", OmegaConf.to_object(changes), dtype)  # type: ignore[arg-type]
    backbone.load(pipeline)
    backbone.__dict__["text_segments"] = (TextSegment(small_clip_tokenizer(max_length=tokens), tokens),)
    return segmentor


def measure(model: str, variant: str, arguments: list[str]) -> dict[str, Any]:
    """Median seconds of a few runs after one that warms up, and their peak of memory."""
    segmentor = segmentor_of(model, arguments)
    backbone: Any = segmentor.backbone
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (backbone.size, backbone.size, 3), dtype=np.uint8))
    text = ", ".join(WORDS)
    blank = backbone.blank_conditioning()
    backbone.embeddings[text] = {key: torch.randn_like(tensor) if tensor.ndim > 2 else tensor for key, tensor in blank.items()}
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1

    def bare() -> None:
        with torch.inference_mode():
            latents = backbone.encode_image(pixels.to(backbone.torch_dtype))
            noisy = backbone.add_noise(latents, torch.randn(latents.shape).to(latents))
            backbone.denoise(noisy, backbone.conditioning([text]))

    run: Callable[[], Any] = bare if variant == "bare" else lambda: segmentor.segment(image, text)
    run()
    machine.reset_peak_memory()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {
        "variant": variant,
        "model": " ".join([model, *(argument for argument in arguments if argument.startswith("denoiser."))]),
        "size": backbone.size,
        "dtype": str(backbone.torch_dtype).removeprefix("torch."),
        "batch": 1,
        "device": backbone.torch_device.type,
        "layers": len(segmentor.plan().cross),
        "seconds": round(statistics.median(seconds), 2),
        "peak_bytes": machine.peak_bytes(),
        **machine.context(torch.get_num_threads()),
    }


def main(model: str, arguments: list[str]) -> None:
    bare: dict[str, Any] = {}
    for variant in ("bare", "goca+affinity"):
        found = machine.measured_apart("benchmarks.full_size", [model, "--variant", variant, *arguments])
        bare = bare or found
        found |= machine.beside(found, bare)
        machine.append({"benchmark": "full_size", **found})
        peak = f"{found['peak_bytes'] / 1e9:.2f} GB ({found['ratio_memory']:.3f})"
        print(f"{variant:14} {found['seconds']:8.2f} s ({found['ratio_time']:.3f})  peak {peak}", flush=True)


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    if rest[:1] == ["--variant"]:
        print(json.dumps(measure(name, rest[1], rest[2:])))
    else:
        main(name, rest)
