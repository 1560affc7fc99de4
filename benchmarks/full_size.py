"""One image through a full-size model with random weights, beside its bare forward: `python -m benchmarks.full_size sd15`.

The denoiser and the autoencoder are built from their published configurations; text embeddings are random, so that no text
encoder is needed. Bare is image encoding and one forward with nothing observed; goca is `Segmentor.segment` with the model's
constants. Each runs in a process of its own. Further arguments are overrides, such as `model.dtype=bfloat16`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from goca.backbones import architectures
from goca.backbones.loading import choose_dtype
from goca.backbones.observable import observable_layers
from goca.config import compose
from goca.data.classes import ClassTable
from goca.prompts.prompt import TextSegment
from goca.scenes.tokenizer import small_clip_tokenizer
from goca.segmentor import Segmentor
from goca.timing import peak_memory_bytes

WORDS = ["circle", "heart", "grass"]
RUNS = 3


def segmentor_of(model: str, overrides: list[str]) -> Segmentor:
    """A segmentor around fresh weights, with a tokenizer that fills the model's text axis."""
    cfg = compose([f"model={model}", *overrides])
    segmentor = Segmentor.from_components(cfg, ClassTable.from_names(["object"]), has_background=False)
    backbone: Any = segmentor.backbone.sketch()
    tokens = max(layer.tokens for layer in observable_layers(backbone))
    dtype = choose_dtype(backbone.dtype, torch.device("cpu"))
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # so that half precision needs no copy in full precision first
    pipeline = architectures.skeleton(backbone.checkpoint, device="cpu")
    torch.set_default_dtype(torch.float32)
    backbone.load(pipeline)
    backbone.__dict__["text_segments"] = (TextSegment(small_clip_tokenizer(max_length=tokens), tokens),)
    return segmentor


def measure(model: str, variant: str, overrides: list[str]) -> dict[str, Any]:
    """Seconds of the best of a few runs after one that warms up, and the peak of resident memory."""
    segmentor = segmentor_of(model, overrides)
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
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {
        "model": model,
        "size": backbone.size,
        "variant": variant,
        "dtype": str(backbone.torch_dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seconds": round(min(seconds), 2),
        "peak_gib": round(peak_memory_bytes() / 2**30, 2),
    }


def main(model: str, overrides: list[str]) -> None:
    results = []
    for variant in ("bare", "goca"):
        command = [sys.executable, "-m", "benchmarks.full_size", model, "--variant", variant, *overrides]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
        print(json.dumps(results[-1]), flush=True)
    bare, goca = results
    print(f"time x {goca['seconds'] / bare['seconds']:.2f}, memory + {goca['peak_gib'] - bare['peak_gib']:.2f} GiB")


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    if rest[:1] == ["--variant"]:
        print(json.dumps(measure(name, rest[1], rest[2:])))
    else:
        main(name, rest)
