"""What `python -m goca.observe prompt=...` does without an image: draw one, and show what was seen meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image

from goca.backbones.base import Backbone
from goca.backbones.calling import DrawingCall, denoiser_calls, pictures
from goca.data.sizes import Square
from goca.errors import ConfigError
from goca.figures import plots
from goca.figures.attention_view import AttentionView
from goca.method import Method
from goca.segmentor import Segmentor
from goca.watching.film import film_kind, save_film
from goca.watching.seen import Seen, SeenPicture
from goca.watching.session import Options, Watch, refuse_decided, while_drawing

_KEPT = 64  # shorter side of the maps of single steps and layers, at most
_SHOWN_STEPS = 8


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
        ConfigError: a size or a number of steps with which the model cannot draw. ModelError: a scale or a negative prompt that
            its pipeline would ignore, and as `goca.watch`.
    """
    backbone = segmentor.backbone
    height, width = size or (backbone.size, backbone.size)
    check_drawing(backbone, steps, negative, guidance_scale, (height, width))
    call = DrawingCall(backbone, guidance_scale)
    kept = min(_KEPT, segmentor.method.aggregation.feature_size)
    options = Options(tuple(reads), negative=bool(negative), steps=kept, layers=kept)
    with Watch(backbone.pipeline, segmentor, options) as seen:
        generator = torch.Generator().manual_seed(seed)
        given = call.arguments(negative or None)
        result = backbone.pipeline(
            prompt=prompt, height=height, width=width, num_inference_steps=steps, generator=generator, **given
        )
    return pictures(result)[0], seen


def check_drawing(backbone: Backbone, steps: int, negative: str, guidance_scale: float | None, size: tuple[int, int]) -> None:
    """Refuse what `draw` cannot do, or what the pipeline would ignore; an inspected backbone is enough.

    Raises:
        ConfigError, ModelError: as `draw`.
    """
    (height, width), unit = size, backbone.size_multiple
    if height % unit or width % unit:
        raise ConfigError(f"size: {backbone.name} draws multiples of {unit} px, got {height} x {width}")
    DrawingCall(backbone, guidance_scale).check([negative])
    denoiser_calls(backbone.pipeline.scheduler, steps)  # which knows how many steps there can be


def drawn_with(method: Method) -> tuple[Method, tuple[str, ...]]:
    """The method as it is used on a drawing, and the stages that have no effect there, as a preset may choose some.

    Raises:
        ConfigError: it cannot be used, or one of these stages was typed.
    """
    stages = ("views", "passes", "sizing")
    refuse_decided(HydraConfig.get().overrides.task if HydraConfig.initialized() else [], stages)
    drawn = replace(while_drawing(method, segments=True), sizing=Square())
    return drawn, tuple(stage for stage in stages if getattr(drawn, stage) != getattr(method, stage))


def strip(picture: SeenPicture) -> Image.Image:
    """Maps of every word over the steps, from noise to picture; every word has its own scale."""
    times = picture.times
    shown = np.unique(np.linspace(0, len(times) - 1, min(_SHOWN_STEPS, len(times))).round().astype(int)).tolist()
    rows = [(word, picture.words[word].steps[shown].numpy()) for word in picture.words]
    return plots.map_grid(rows, [f"{step + 1}: t = {times[step]:.0f}" for step in shown])


@dataclass(frozen=True)
class Shown:
    """What `goca.observe` shows.

    Args:
        view: of the picture.
        paths: files that were written.
        figures: pictures by name.
        films: files by name.
    """

    view: AttentionView
    paths: list[Path]
    figures: dict[str, Image.Image]
    films: dict[str, Path] = field(default_factory=dict)


def show_drawing(segmentor: Segmentor, cfg: DictConfig) -> Shown:
    """Draw with a loaded segmentor, and write what was seen into the command's folder."""
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
    figures = {"picture": image, **view.figures(pixels), **_of_words(seen.only, image)}
    for text in seen.reads:
        figures |= _of_words(seen.reads[text].only, image, "reads_")
        figures["reads_segmentation"] = seen.reads[text].segmentation(image, background=cfg.background).picture()
    if cfg.negative_prompt:
        figures |= _of_words(seen.negative.only, image, "negative_")
    folder = Path(cfg.output)
    paths = save_figures(figures, folder)
    films, kind = {}, film_kind(cfg.film)
    if kind != "none":
        films["film"] = save_film(seen.only, image, folder / f"film.{kind}")
    if cfg.save == "tensors":
        paths.append(seen.save(folder / "attention.safetensors"))
    return Shown(view, [*paths, *films.values()], figures, films)


def save_figures(figures: Mapping[str, Image.Image], folder: Path) -> list[Path]:
    """Write pictures under their names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.save(path)
    return paths


def _of_words(picture: SeenPicture, image: Image.Image, prefix: str = "") -> dict[str, Image.Image]:
    """The strip over the steps, and of every word its overlay and mask."""
    figures = {f"{prefix}steps": strip(picture)}
    for number, word in enumerate(picture.words):
        name = f"{prefix}{number}_{''.join(letter if letter.isalnum() else '_' for letter in word)}"
        figures[f"{name}_overlay"] = picture.words[word].overlay(image)
        figures[f"{name}_mask"] = Image.fromarray((picture.words[word].mask() * 255).astype(np.uint8))
    return figures
