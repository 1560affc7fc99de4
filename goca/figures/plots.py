"""Pictures of results: predictions beside ground truth, and the maps of each class through the stages of the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image

from goca.data.base import IGNORE
from goca.data.classes import ClassTable
from goca.figures import text
from goca.figures.canvas import MAP_COLOURS, Canvas
from goca.figures.example import Example

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
    shown = overlay(enlarged(image), enlarged(label), classes)
    height, width = image.shape[:2]
    tall = min(max(height / width, 0.1), 2.5)  # a picture of one column would make a figure of gigabytes
    canvas = Canvas(4.5, 4.5 * tall, _patches(classes, np.unique(label)))
    canvas.within(shown, 0.05, 0.05, 4.4, 4.5 * tall - 0.1)
    return render(canvas.figure)


@text.figure
def overview(examples: Sequence[Example], classes: ClassTable, threshold: int = 0) -> Image.Image:
    """A row per image: the image, its ground truth (where there is one) and the prediction at one threshold."""
    side, line, gap = 2.1, 0.22, 0.06
    rows, seen = [], set[int]()
    for example in examples:
        label = example.labels[min(threshold, len(example.labels) - 1)]
        image, truth = enlarged(example.image), None if example.truth is None else enlarged(example.truth)
        shown = [image, None if truth is None else overlay(image, truth, classes), overlay(image, enlarged(label), classes)]
        seen.update(np.unique(label).tolist(), [] if example.truth is None else np.unique(example.truth).tolist())
        rows.append((text.label(example.image_id), shown))
    canvas = Canvas(3 * side + 4 * gap, len(rows) * (side + line) + gap, _patches(classes, sorted(seen)))
    for row, (name, shown) in enumerate(rows):
        top = line + row * (side + line)
        for column, (title, picture) in enumerate(zip((name, "ground truth", "prediction"), shown, strict=True)):
            left = gap + column * (side + gap)
            if column == 0 or row == 0:
                canvas.words(title, left + side / 2, top - 0.04)
            if picture is not None:
                canvas.picture(picture, left, top, side)
    return render(canvas.figure)


@text.figure
def stages(example: Example, classes: ClassTable) -> Image.Image:
    """A column per class: its aggregated attention, the same after calibration and refinement; one colour scale a row.

    Where the refinement found segments without names, its row shows them under headings of its own.
    """
    named, refined = example.names(lambda class_id: _class_name(classes, class_id, 24))
    rows = [("aggregated attention", example.raw, named), ("calibrated", example.calibrated, [])] if named else []
    rows.append(("refined", example.refined, refined if example.segments else []))
    side, gap, line, beside = 1.6, 0.1, 0.24, 0.2
    start = gap + side + beside + gap  # of the maps, right of the image and the names of the rows
    columns = max(len(named), len(example.refined))
    headings = max(1, sum(bool(names) for *_, names in rows))
    canvas = Canvas(start + columns * (side + gap) + 0.5, headings * line + max(1, len(rows)) * (side + gap))
    canvas.words(text.label(example.image_id, 24), gap + side / 2, line - 0.04)
    canvas.picture(example.image, gap, line, side)
    top = 0.0
    for title, values, names in rows if columns else ():
        top += line * bool(names)
        for column, name in enumerate(names):
            canvas.words(name, start + column * (side + gap) + side / 2, top - 0.04)
        limits = (float(values.min(initial=0)), float(values.max(initial=1e-12)))
        canvas.words(title, start - gap, top + side / 2, ha="right", va="center", rotation=90)
        for column, class_map in enumerate(values):
            canvas.picture(class_map, start + column * (side + gap), top, side, limits)
        canvas.scale(start + len(values) * (side + gap), top + 0.1 * side, 0.8 * side, limits)
        top += side + gap
    return render(canvas.figure)


@text.figure
def map_grid(rows: Sequence[tuple[str, np.ndarray]], names: Sequence[str]) -> Image.Image:
    """A row of maps (C, h, w) per title, a column per name; every row has its own scale, from 0 to its maximum."""
    side, gap, line = 1.25, 0.08, 0.24
    titles = ["\n".join(text.label(part, 80) for part in title.split("\n")) for title, _ in rows]
    start = 0.2 + 0.055 * max((len(part) for title in titles for part in title.split("\n")), default=0)
    canvas = Canvas(start + max(1, len(names)) * (side + gap) + 0.5, line + len(rows) * (side + gap))
    for column, name in enumerate(names):
        canvas.words(text.label(name, 24), start + column * (side + gap) + side / 2, line - 0.04)
    for row, (title, (_, maps)) in enumerate(zip(titles, rows, strict=True)):
        top, limits = line + row * (side + gap), (0.0, float(maps.max(initial=0)) or 1.0)
        canvas.words(title, start - gap, top + side / 2, size=6, ha="right", va="center")
        for column, values in enumerate(maps[: len(names)]):
            canvas.picture(values, start + column * (side + gap), top, side, limits)
        if len(names):
            canvas.scale(start + len(names) * (side + gap), top + 0.1 * side, 0.8 * side, limits)
    return render(canvas.figure)


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


def _patches(classes: ClassTable, ids: Sequence[int] | np.ndarray) -> list[Patch]:
    """What a legend shows of the classes."""
    named = [int(i) for i in ids if 0 < i < len(classes)]
    patches = [Patch(color=_unit(classes.colours[i]), label=_class_name(classes, i)) for i in named]
    if any(i == IGNORE for i in ids):
        patches.append(Patch(color=_unit(_VOID), label="ignored"))
    return patches


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
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
