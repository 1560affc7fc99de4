"""Draw the picture of README - where words look, what comes of it, and the truth: `python -m experiments.draw_overview`.

Writes docs/images/overview.png. The scenes are the first two held-out ones that show five classes, not chosen by their results.
"""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from goca import Segmentor
from goca.figures.plots import enlarged, heat_overlay, overlay, render
from goca.scenes.generator import CLASSES, Scene, scene

OUT = Path("docs/images/overview.png")
FIRST, WORDS, ROWS = 1_000_000, 5, 2


def cells(segmentor: Segmentor, shown: Scene) -> list[tuple[str, np.ndarray]]:
    """Title and pixels of each cell of a row."""
    result = segmentor.segment(shown.image, list(shown.words))
    heats = []
    for word, scores in result.class_maps.items():
        resized = Image.fromarray(scores.astype(np.float32)).resize(shown.label.shape[::-1], Image.Resampling.BILINEAR)
        heats.append((word, np.asarray(heat_overlay(shown.image, np.clip(np.asarray(resized), 0, 1)))))
    names = {name: i for i, name in enumerate(result.classes.names)}
    truth = np.array([names.get(name, 0) for name in CLASSES], np.uint8)[shown.label]
    labels = [("segmentation", result.label_map), ("truth", truth)]
    return [
        ("picture", enlarged(shown.image)),
        *((title, enlarged(pixels)) for title, pixels in heats),
        *((title, overlay(enlarged(shown.image), enlarged(label), result.classes)) for title, label in labels),
    ]


def main() -> None:
    segmentor = Segmentor.from_config("scenes_unet")
    scenes = islice((found for i in count(FIRST) if len((found := scene(i)).words) == WORDS), ROWS)
    rows = [cells(segmentor, shown) for shown in scenes]
    columns = len(rows[0])
    figure = Figure(figsize=(1.3 * columns, 1.53 * len(rows)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05, wspace=0.0, hspace=0.0)  # type: ignore[call-arg]
    for line, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes, (title, pixels) in zip(line, row, strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_title(title, fontsize=11, pad=3)
            axes.axis("off")
    render(figure, dpi=170).quantize(256, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
