"""`python -m goca.observe image=cat.jpg prompt="a cat on grass"`: what the attention of one forward shows, stage by stage.

In a notebook: `observe(Segmentor.from_config("sd15"), "cat.jpg", "a cat on grass")`; the result shows itself.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.arguments import literal, words_as_text
    from goca.config.start import start

    sys.argv[1:] = literal(words_as_text(sys.argv[1:]), ("image", "prompt", "reads", "negative_prompt"))
    start("goca.observe", "observe")

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from goca import config
from goca.attention.call import AttentionCall, blocks, probabilities
from goca.attention.statistics import AttentionStatistics
from goca.attention.stitched import joined_maps
from goca.config.arguments import literal
from goca.config.redact import redact
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.files import existing, printable
from goca.data.pictures import ImageSource, Picture, read_picture
from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.errors import ConfigError, DataError
from goca.figures.attention_view import TOKEN_COLUMNS, AttentionView
from goca.layer_names import resolve
from goca.method import weighed_layers
from goca.ops import Grid
from goca.prompts import Prompt, TextSegment, from_text
from goca.prompts.sentence import check_text, from_sentence, is_caption
from goca.runs.report import Logger, Report
from goca.runs.table import Table
from goca.segmentation import Threshold, background_of
from goca.segmentor import Segmentor
from goca.watching.film import film_kind
from goca.watching.show import Shown, check_drawing, drawn_with, save_figures, show_drawing


class _Module(ModuleType):
    """This module can be called as its function, so that `goca.observe(...)` works whichever of the two was imported first."""

    def __call__(self, *args: Any, **kwargs: Any) -> AttentionView:
        return observe(*args, **kwargs)


sys.modules[__name__].__class__ = _Module


class HeadStatistics(AttentionStatistics):
    """Statistics that also keep every layer's map, and each head's map of chosen layers, for the first image.

    Args:
        head_layers: cross-attention layers whose heads are kept.
        tokens: positions on the text axis that are kept of them.
        size: grid of the token maps.
    """

    def __init__(
        self, segmentor: Segmentor, head_layers: Sequence[str], tokens: Sequence[int], size: Grid | None = None
    ) -> None:
        plan = segmentor.plan()
        super().__init__(weighed_layers(segmentor.method), plan, segmentor.max_bytes, True, segmentor.precision, size)
        shown = [plan.reference] if plan.reference and plan.reference in plan.cross else list(plan.cross)[-1:]
        self.head_layers = resolve(head_layers or shown, plan.cross, "heads")
        self._tokens = list(tokens)
        self.head_maps: dict[str, Tensor] = {}  # layer -> (H, |tokens|, h, w)

    def observe(self, call: AttentionCall) -> None:
        if call.layer in self.head_layers and call.text is not None:
            one = call.image_at(0)
            visited = blocks(one, call.text, one.query.shape[2], self.max_bytes)
            parts = [probabilities(one, call.text, batch, rows)[0][..., self._tokens] for batch, rows in visited]
            self.head_maps[call.layer] = torch.cat(parts, dim=1).transpose(1, 2).unflatten(2, call.grid).cpu()
        super().observe(call)


def observe(
    segmentor: Segmentor,
    image: ImageSource,
    prompt: str,
    words: Sequence[str] = (),
    background: Threshold = None,
    heads: Sequence[str] = (),
) -> AttentionView:
    """One forward with everything kept that can be looked at.

    Args:
        segmentor: with a loaded backbone.
        image: a path, `scenes:N` for a bundled scene, the bytes of a file, a PIL image or an (H, W, 3) uint8 array.
        prompt: a sentence, or a caption in the form "(person, clothes), dog, grass".
        words: words of the prompt to segment by; none takes every noun of a caption, or every content word of a sentence.
        background: as of `Segmentor.segment`: how high a word has to score; None lets every pixel belong to a word.
        heads: layers (globs) whose heads are shown; none shows those of the reference layer.

    Raises:
        ConfigError: an empty prompt, a word it does not contain, or a background that the method cannot have. DataError: an
            unreadable image. ModelError: unknown layers.
    """
    picture = read_image(image)
    array = picture.pixels
    table, aligned = read_prompt(prompt, words, segmentor.backbone.text_segments)
    competes, tau = background_of(background, len(table) - 1, segmentor.method)
    sample = Sample("image", array, None, (), pixels=segmentor.pixels(array), notes=picture.notes)
    looked: list[HeadStatistics] = []  # one for every window

    def statistics(size: Grid) -> HeadStatistics:
        looked.append(HeadStatistics(segmentor, heads, aligned.content, size))
        return looked[-1]

    with torch.inference_mode():
        rows = segmentor.rows([(sample, (aligned,))])
        seen = segmentor.observe(rows, statistics)
        prediction = segmentor.finish(sample, (aligned,), rows, seen, len(table), competes, tau)
    head_maps = joined_maps([each.head_maps for each in looked], seen)
    return AttentionView(array, aligned, table, seen, prediction, head_maps)


def read_image(image: ImageSource) -> Picture:
    """The picture of a path, of a bundled scene `scenes:N`, or of whatever else `read_picture` takes."""
    name = str(image) if isinstance(image, (str, Path)) else ""
    if not name.startswith("scenes:"):
        if name and not existing(Path(name)).is_file():
            raise DataError(f"there is no image {printable(name)}")
        return read_picture(image)
    number = name.removeprefix("scenes:")
    scenes = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"))
    if not (number.isdecimal() and int(number) < len(scenes)):
        raise ConfigError(f"image={name}: bundled scenes are scenes:0 ... scenes:{len(scenes) - 1}")
    return Picture(scenes[int(number)].image)


def read_prompt(prompt: str, words: Sequence[str], segments: Sequence[TextSegment]) -> tuple[ClassTable, Prompt]:
    """The prompt aligned on the backbone's tokens, with each word as a class.

    Raises:
        ConfigError: nothing to look for, or a word that the prompt does not contain.
    """
    if not words and is_caption(check_text(prompt)):
        table, (aligned,) = from_text(prompt, segments)
    else:
        table, aligned = from_sentence(prompt, segments, words)
    if not aligned.class_tokens:
        raise ConfigError(f"no word of the prompt {prompt!r} has a token of its own; give at least one noun")
    return table, aligned


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "observe"):
        show(cfg, Console(emoji=False))


def show(cfg: DictConfig, console: Console) -> None:
    """What `python -m goca.observe` does: look, write the pictures, print the table of tokens and where everything lies."""
    segmentor = Segmentor.build(cfg)
    logger: Logger = config.build(cfg, "logger")
    logger.check()
    film_kind(cfg.film)
    _check_asked(cfg)
    idle: tuple[str, ...] = ()
    if cfg.image is None:
        segmentor.method, idle = drawn_with(segmentor.method)
    background_of(cfg.background, 2, segmentor.method)
    size = cfg.size or (segmentor.backbone.size, segmentor.backbone.size)
    if cfg.image is not None:  # what is wrong with it should not wait for the model
        size = read_image(cfg.image).pixels.shape[:2]
    check_pixels(cfg.pixels, (size[0], size[1]))
    if cfg.image is None:
        segmentor.backbone.inspect()
        check_drawing(segmentor.backbone, cfg.steps, cfg.negative_prompt or "", cfg.guidance_scale, (size[0], size[1]))
    segmentor.backbone.load()
    read_prompt(cfg.prompt, tuple(cfg.words), segmentor.backbone.text_segments)  # nor a word that is not there for the drawing
    if idle:
        said = f"warning: {', '.join(idle)} of this method: without effect on a drawing, which is seen once, as it is drawn"
        console.print(said, style="yellow", markup=False)
    shown = show_drawing(segmentor, cfg) if cfg.image is None else _show_image(segmentor, cfg)
    console.print(shown.view.token_table())
    for warning in dict.fromkeys((*shown.view.prompt.warnings, *shown.view.prediction.warnings)):
        console.print(f"warning: {warning}", style="yellow", markup=False)
    for path in shown.paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    where = logger.log_safely(_report(segmentor, cfg, shown))
    if where:
        console.print(f"logged    {where}", markup=False, highlight=False, soft_wrap=True)


def _check_asked(cfg: DictConfig) -> None:
    """Refuse what would be left out without a word."""
    if cfg.image is not None:
        usual = config.compose((), "observe")
        for name in ("reads", "negative_prompt", "steps", "guidance_scale", "size", "film"):
            if cfg[name] != usual[name] and cfg[name] not in (None, "", "none", False):
                raise ConfigError(f"{name} is for a picture that is drawn; leave it out, or leave image= out and one is drawn")
    elif cfg.heads:
        raise ConfigError("heads are shown of an existing picture, image=FILE; of a drawing the sums over its steps are kept")


def check_pixels(pixels: Sequence[Sequence[int]], size: Grid) -> None:
    """Refuse pixels that a picture of this (height, width) does not have."""
    for x, y in pixels:
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise ConfigError(f"pixels: {x},{y} is outside the image of {size[1]} x {size[0]} pixels")


def _show_image(segmentor: Segmentor, cfg: DictConfig) -> Shown:
    """The same of an existing picture."""
    view = observe(segmentor, cfg.image, cfg.prompt, tuple(cfg.words), cfg.background, tuple(cfg.heads))
    height, width = view.image.shape[:2]
    figures = view.figures([(int(x), int(y)) for x, y in cfg.pixels] or [(width // 2, height // 2)])
    paths = save_figures(figures, Path(cfg.output))
    return Shown(view, paths + view.save_tensors(Path(cfg.output)) if cfg.save == "tensors" else paths, figures)


def _report(segmentor: Segmentor, cfg: DictConfig, shown: Shown) -> Report:
    """What a logger is given: every picture and film that was written, and the tables behind them."""
    view, model = shown.view, segmentor.backbone.name
    weights, errors = view.prediction.layer_weights, view.prediction.layer_weight_errors
    rows = tuple((layer, weight, *((errors[layer],) if errors else ())) for layer, weight in weights.items())
    columns = ("layer", "weight", *(("standard error",) if errors else ()))
    return Report(
        Path(cfg.output),
        name=f"{model} {view.prompt.text}",
        config=redact(config.plain(cfg)),
        texts={"model": model, "prompt": view.prompt.text},
        tables={
            "tokens": Table(TOKEN_COLUMNS, tuple(view.token_rows())),
            "layer_weights": Table(columns, rows),
        },
        figures=shown.figures,
        films=shown.films,
        examples=(view.example,),
        class_names=view.classes.names,
        kind="observe",
        tags=[model, "drawn" if cfg.image is None else "image"],
    )
