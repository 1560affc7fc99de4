"""Pictures of results: predictions beside ground truth, and the maps of each class through the stages of the method."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image

from goca.data.base import IGNORE
from goca.data.classes import ClassTable
from goca.figures import text
from goca.figures.example import Example

MAP_COLOURS = "viridis"  # perceptually uniform
BAR_COLOUR = "#31688e"  # of the same palette
_OPACITY = 0.7
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_PIXELS_BY_LINE = 500  # of the image's longer side, for one pixel more on either side of an outline
_VOID = (128, 128, 128)


def colourize(label: np.ndarray, classes: ClassTable) -> np.ndarray:
    """(H, W) class ids -> (H, W, 3) uint8 in the classes' own colours; ignored pixels are grey."""
    palette = np.full((256, 3), _VOID, np.uint8)
    palette[: min(len(classes), IGNORE)] = classes.colours[:IGNORE]
    return palette[label]


def overlay(image: np.ndarray, label: np.ndarray, classes: ClassTable) -> np.ndarray:
    """The image in grey with its classes laid over in their colours, and outlined in exactly these: (H, W, 3) uint8.

    Over a coloured image a colour would become another one, which no legend shows. Background pixels are grey alone.
    """
    grey = (image @ _LUMINANCE)[..., None]  # (H, W, 1)
    colours = colourize(label, classes)
    mixed = _OPACITY * colours + (1 - _OPACITY) * (64 + grey / 2)  # of middle brightness: dark and light areas show the colour
    mixed = np.where(_outline(label)[..., None], colours, mixed)
    return np.where((label == 0)[..., None], grey, mixed).round().astype(np.uint8)


def enlarged(pixels: np.ndarray, side: int = 448) -> np.ndarray:
    """(H, W, ...) with every pixel repeated, as often as the longer side fits `side`: outlines of small pictures stay thin."""
    factor = max(1, side // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _outline(label: np.ndarray) -> np.ndarray:
    """Pixels (H, W) at the edge of their area, in lines of a width that suits the image's size."""
    edge = np.zeros(label.shape, bool)
    for axis in (0, 1):
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        differs = label[tuple(before)] != label[tuple(after)]
        edge[tuple(before)] |= differs
        edge[tuple(after)] |= differs
    for _ in range(max(label.shape) // _PIXELS_BY_LINE):
        wider = edge.copy()
        wider[1:] |= edge[:-1]
        wider[:-1] |= edge[1:]
        wider[:, 1:] |= edge[:, :-1]
        wider[:, :-1] |= edge[:, 1:]
        edge = wider
    return edge


@text.figure
def overlay_figure(image: np.ndarray, label: np.ndarray, classes: ClassTable) -> Image.Image:
    """One image with its classes laid over, and a legend."""
    height, width = image.shape[:2]
    tall = min(max(height / width, 0.1), 2.5)  # a picture of one column would make a figure of gigabytes
    figure = Figure(figsize=(4.5, 4.5 * tall + 0.7), layout="constrained")
    axes = figure.subplots()
    axes.imshow(overlay(enlarged(image), enlarged(label), classes), interpolation="nearest")
    axes.axis("off")
    _legend(figure, classes, np.unique(label))
    return render(figure)


@text.figure
def overview(examples: Sequence[Example], classes: ClassTable, threshold: int = 0) -> Image.Image:
    """A row per image: the image, its ground truth (where there is one) and the prediction at one threshold."""
    rows = len(examples)
    figure = Figure(figsize=(6.6, 2.2 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False)
    seen: set[int] = set()
    for axes, example in zip(grid, examples, strict=True):
        label = example.labels[min(threshold, len(example.labels) - 1)]
        image, truth = enlarged(example.image), None if example.truth is None else enlarged(example.truth)
        shown = [image, None if truth is None else overlay(image, truth, classes)]
        shown.append(overlay(image, enlarged(label), classes))
        seen.update(np.unique(label).tolist(), [] if example.truth is None else np.unique(example.truth).tolist())
        for axis, picture in zip(axes, shown, strict=True):
            axis.axis("off")
            if picture is not None:
                axis.imshow(picture, interpolation="nearest")
        axes[0].set_title(text.label(example.image_id), fontsize=8)
    grid[0, 1].set_title("ground truth", fontsize=8)
    grid[0, 2].set_title("prediction", fontsize=8)
    _legend(figure, classes, sorted(seen))
    return render(figure)


@text.figure
def stages(example: Example, classes: ClassTable) -> Image.Image:
    """A column per class: its aggregated attention, the same after calibration and refinement; one colour scale a row."""
    rows = [("aggregated attention", example.raw), ("calibrated", example.calibrated), ("refined", example.refined)]
    columns = len(example.class_ids)
    figure = Figure(figsize=(1.7 * (columns + 1) + 0.6, 5.6), layout="constrained")
    grid = figure.subplots(3, columns + 1, squeeze=False)
    for axes, (title, values) in zip(grid, rows, strict=True):
        axes[0].axis("off")
        limits = {"vmin": float(values.min(initial=0)), "vmax": float(values.max(initial=1e-12))}
        for column, class_map in enumerate(values, start=1):
            picture = axes[column].imshow(class_map, cmap=MAP_COLOURS, **limits)
            axes[column].axis("off")
        if columns:
            axes[1].text(-0.06, 0.5, title, ha="right", va="center", rotation=90, fontsize=8, transform=axes[1].transAxes)
            figure.colorbar(picture, ax=list(axes[1:]), shrink=0.8).ax.tick_params(labelsize=6)
    grid[0, 0].imshow(example.image)
    grid[0, 0].set_title(text.label(example.image_id, 24), fontsize=8)
    for column, class_id in enumerate(example.class_ids, start=1):
        grid[0, column].set_title(_class_name(classes, class_id, 24), fontsize=8)
    return render(figure)


@text.figure
def map_grid(rows: Sequence[tuple[str, np.ndarray]], names: Sequence[str]) -> Image.Image:
    """A row of maps (C, h, w) per title, a column per name; every row has its own scale, from 0 to its maximum."""
    columns = max(1, len(names))
    figure = Figure(figsize=(1.35 * columns + 2.2, 1.35 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (axes, (title, maps)) in enumerate(zip(grid, rows, strict=True)):
        for axis, name, values in zip(axes, names, maps, strict=True):
            picture = axis.imshow(values, cmap=MAP_COLOURS, vmin=0, vmax=float(maps.max()) or 1.0)
            axis.set_xticks([])
            axis.set_yticks([])
            if line == 0:
                axis.set_title(text.label(name, 24), fontsize=8)
        axes[0].set_ylabel(
            "\n".join(text.label(line, 80) for line in title.split("\n")), fontsize=6, rotation=0, ha="right", va="center"
        )
        if len(names):
            figure.colorbar(picture, ax=list(axes), shrink=0.8).ax.tick_params(labelsize=6)
    return render(figure)


def heat(values: np.ndarray, top: float, side: int = 128) -> Image.Image:
    """One map (h, w) in the colours of all maps, from 0 to `top`, enlarged without blurring to about `side` pixels."""
    unit = np.clip(values / (top or 1.0), 0, 1)
    picture = Image.fromarray((colormaps[MAP_COLOURS](unit)[..., :3] * 255).round().astype(np.uint8))
    scale = max(1, side // max(values.shape))
    return picture.resize((values.shape[1] * scale, values.shape[0] * scale), Image.Resampling.NEAREST)


def heat_overlay(image: np.ndarray, values: np.ndarray) -> Image.Image:
    """The image (H, W, 3) in grey with a map (H, W) of 0 ... 1 laid over: the more, the more colour."""
    grey = (image @ _LUMINANCE)[..., None]
    colours = colormaps[MAP_COLOURS](values)[..., :3] * 255
    opacity = (0.25 + 0.5 * values)[..., None]
    return Image.fromarray((opacity * colours + (1 - opacity) * grey).round().astype(np.uint8))


@text.figure
def bars(names: Sequence[str], values: Sequence[float], spreads: Sequence[float] | None = None, axis: str = "") -> Image.Image:
    """Horizontal bars, the first name on top, with their spread where there is one."""
    figure = Figure(figsize=(7, 0.9 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))[::-1]
    axes.barh(places, values, xerr=spreads, height=0.75, color=BAR_COLOUR, error_kw={"elinewidth": 1})
    axes.set_yticks(places, [text.label(name, 80) for name in names], fontsize=7)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(axis, fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    return render(figure)


@text.figure
def confusion_figure(rows: Sequence[Sequence[Any]]) -> Image.Image:
    """(truth, prediction, pixels) rows as a matrix whose rows add up to 100 %."""
    names = list(dict.fromkeys([row[0] for row in rows] + [row[1] for row in rows]))
    matrix = np.zeros((len(names), len(names)))
    for truth, predicted, count in rows:
        matrix[names.index(truth), names.index(predicted)] = count
    matrix = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 2.2 + 0.22 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(matrix, cmap=MAP_COLOURS, vmin=0, vmax=100)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(len(names)), [text.label(name, 80) for name in names], fontsize=7)
    axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("prediction", fontsize=8)
    axes.set_ylabel("ground truth", fontsize=8)
    figure.colorbar(picture, shrink=0.7, label="% of the class's pixels").ax.tick_params(labelsize=7)
    return render(figure)


def _legend(figure: Figure, classes: ClassTable, ids: Sequence[int] | np.ndarray) -> None:
    named = [int(i) for i in ids if 0 < i < len(classes)]
    patches = [Patch(color=_unit(classes.colours[i]), label=_class_name(classes, i)) for i in named]
    if any(i == IGNORE for i in ids):
        patches.append(Patch(color=_unit(_VOID), label="ignored"))
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=min(5, len(patches)), fontsize=8, frameon=False)


def _class_name(classes: ClassTable, class_id: int, most: int = 40) -> str:
    """The class's name; its id where no font can draw a single character of it."""
    name = classes.names[class_id]
    return text.label(name, most) if text.is_drawn(name) else f"class {class_id}"


def _unit(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def render(figure: Figure, dpi: int = 110) -> Image.Image:
    """Draw a figure into an RGB image."""
    for artist in figure.findobj(Text):  # those made before `text.label` found a further font know it as well
        if artist.get_fontfamily()[0] == rcParams["font.family"][0]:
            artist.set_fontfamily(rcParams["font.family"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return Image.open(buffer).convert("RGB")
