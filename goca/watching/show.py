"""What `python -m goca.observe prompt=...` does without an image: draw one, and show what was seen meanwhile."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console

from goca.errors import ConfigError
from goca.figures import plots
from goca.segmentor import Segmentor
from goca.watching.seen import Seen, SeenPicture
from goca.watching.session import Options, Watch

_KEPT = 64  # shorter side of the maps of single steps and layers, at most
_SHOWN_STEPS, _FILM_WORDS = 8, 4
_SIDE = 256  # pixels of a film's picture
_MILLISECONDS = 200  # a frame is shown


def draw(
    segmentor: Segmentor,
    prompt: str,
    steps: int = 20,
    seed: int = 0,
    negative: str = "",
    guidance_scale: float | None = None,
    size: tuple[int, int] | None = None,
    reads: Sequence[str] = (),
) -> tuple[Image.Image, Seen]:
    """Draw a picture with a loaded segmentor's pipeline, and watch; single steps and layers are kept.

    Args:
        size: (height, width) in pixels; None is the model's square.
        guidance_scale: None is the pipeline's own.
        reads: other words.

    Raises:
        ConfigError: a size the model cannot draw, or an option its pipeline lacks. ModelError: as `goca.watch`.
    """
    backbone = segmentor.backbone
    height, width = size or (backbone.size, backbone.size)
    unit = backbone.size_multiple
    if height % unit or width % unit:
        raise ConfigError(f"size: {backbone.name} draws multiples of {unit} px, got {height} x {width}")
    known = inspect.signature(backbone.pipeline.__call__).parameters
    wanted: dict[str, Any] = {"negative_prompt": negative or None, "guidance_scale": guidance_scale}
    for name, value in wanted.items():
        if value is not None and name not in known:
            raise ConfigError(f"{name}: {type(backbone.pipeline).__name__} knows none; leave it out")
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    given |= {name: False for name in ("use_resolution_binning", "clean_caption") if name in known}
    kept = min(_KEPT, segmentor.method.aggregation.feature_size)
    options = Options(tuple(reads), negative=bool(negative), steps=kept, layers=kept)
    with Watch(backbone.pipeline, segmentor, options) as seen:
        generator = torch.Generator().manual_seed(seed)
        result = backbone.pipeline(
            prompt=prompt, height=height, width=width, num_inference_steps=steps, generator=generator, **given
        )
    images = result.images if hasattr(result, "images") else result.image
    return images[0], seen


def strip(picture: SeenPicture) -> Image.Image:
    """Maps of every word over the steps, from noise to picture; every word has its own scale."""
    times = picture.times
    shown = np.unique(np.linspace(0, len(times) - 1, min(_SHOWN_STEPS, len(times))).round().astype(int)).tolist()
    rows = [(word, picture.words[word].steps[shown].numpy()) for word in picture.words]
    return plots.map_grid(rows, [f"{step + 1}: t = {times[step]:.0f}" for step in shown])


def film(picture: SeenPicture, image: Image.Image, path: Path) -> Path:
    """An animated GIF: a frame for every evaluation, the first words side by side over the finished picture."""
    words = list(picture.words)[:_FILM_WORDS]
    maps = {word: picture.words[word].steps for word in words}
    large = np.asarray(image.convert("RGB").resize(_film_size(image), Image.Resampling.NEAREST))
    frames = []
    for step in range(len(picture.times)):
        parts = []
        for word in words:
            low, high = float(maps[word].min()), float(maps[word].max())
            unit = ((maps[word][step] - low) / max(high - low, 1e-12)).numpy()
            stretched = Image.fromarray(unit.astype(np.float32)).resize(_film_size(image), Image.Resampling.BILINEAR)
            parts.append(np.asarray(plots.heat_overlay(large, np.clip(np.asarray(stretched), 0, 1))))
        frames.append(Image.fromarray(np.concatenate(parts, 1)))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=_MILLISECONDS, loop=0)
    return path


def _film_size(image: Image.Image) -> tuple[int, int]:
    scale = _SIDE / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def show_drawing(segmentor: Segmentor, cfg: DictConfig, console: Console) -> None:
    """Draw, write pictures, and print the table of tokens and where everything lies."""
    segmentor.backbone.load()
    image, seen = draw(
        segmentor,
        cfg.prompt,
        cfg.steps,
        cfg.seed,
        cfg.negative_prompt,
        cfg.guidance_scale,
        None if cfg.size is None else (cfg.size[0], cfg.size[1]),
        [cfg.reads] if cfg.reads else [],
    )
    view = seen.view(image, tuple(cfg.words), cfg.background)
    pixels = [(int(x), int(y)) for x, y in cfg.pixels] or [(image.width // 2, image.height // 2)]
    for pixel in pixels:
        view.scores(*pixel)
    folder = Path(cfg.output)
    paths = view.save(folder, pixels)
    paths += _save(seen.only, image, folder, "", cfg.film)
    for text in seen.reads:
        paths += _save(seen.reads[text].only, image, folder, "reads_", False)
        paths.append(folder / "reads_segmentation.png")
        seen.reads[text].segmentation(image, background=cfg.background).picture().save(paths[-1])
    if cfg.negative_prompt:
        paths += _save(seen.negative.only, image, folder, "negative_", False)
    if cfg.save == "tensors":
        paths.append(seen.save(folder / "attention.safetensors"))
    paths.append(folder / "picture.png")
    image.save(paths[-1])
    console.print(view.token_table())
    for warning in dict.fromkeys((*view.prompt.warnings, *view.prediction.warnings)):
        console.print(f"warning: {warning}", style="yellow", markup=False)
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _save(picture: SeenPicture, image: Image.Image, folder: Path, prefix: str, moving: bool) -> list[Path]:
    """Strip, film, and of every word its overlay and mask."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}steps.png"]
    strip(picture).save(paths[0])
    if moving:
        paths.append(film(picture, image, folder / f"{prefix}film.gif"))
    for number, word in enumerate(picture.words):
        name = "".join(letter if letter.isalnum() else "_" for letter in word)
        paths += [folder / f"{prefix}{number}_{name}_{kind}.png" for kind in ("overlay", "mask")]
        picture.words[word].overlay(image).save(paths[-2])
        Image.fromarray((picture.words[word].mask() * 255).astype(np.uint8)).save(paths[-1])
    return paths
