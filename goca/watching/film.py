"""How the maps of words form while a picture is drawn, as a film: an animated GIF, or MP4 with the extra `video`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from goca.config.settings import film_name
from goca.errors import ConfigError, require
from goca.figures import plots, text
from goca.watching.seen import SeenPicture

Kind = Literal["gif", "mp4", "none"]
_WORDS = 4  # that are shown side by side
_SIDE = 256  # pixels of a picture
_TITLE = 20  # pixels above them
_PER_SECOND = 5  # frames
_QUALITY = {"crf": "18"}  # of H.264, at which no difference is seen


def film_kind(wanted: object) -> Kind:
    """What `film=` asks for; `true` and `false` were its values once.

    Raises:
        ConfigError: it is neither gif, mp4 nor none, or the package that writes MP4 is missing.
    """
    kind = film_name(wanted)
    if kind not in get_args(Kind):
        raise ConfigError(f"film: choose among {', '.join(get_args(Kind))}; got {wanted!r}")
    if kind == "mp4":
        require("av", "av", "video", "film=mp4")
    found: Kind = kind  # type: ignore[assignment]
    return found


def save_film(picture: SeenPicture, image: Image.Image, path: Path) -> Path:
    """Write a frame for every evaluation: the first words side by side over the finished picture, each on its own scale.

    Args:
        picture: watched with `steps`.
        image: what was drawn.
        path: ends in .gif or .mp4.
    """
    if path.suffix == ".mp4":
        _save_mp4(_frames(picture, image), path)
        return path
    first, *others = _frames(picture, image)
    first.save(path, save_all=True, append_images=others, duration=1000 // _PER_SECOND, loop=0)
    return path


def _frames(picture: SeenPicture, image: Image.Image) -> Iterator[Image.Image]:
    words = list(picture.words)[:_WORDS]
    scale = _SIDE / max(image.size)
    width, height = (2 * max(1, round(side * scale / 2)) for side in image.size)  # even, as H.264 asks
    large = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST))
    maps = {}
    for word in words:
        values = picture.words[word].steps
        low, high = values.min(), values.max()
        maps[word] = ((values - low) / (high - low).clamp(min=1e-12)).numpy()
    titles = _titles(words, width)
    for step, time in enumerate(picture.times):
        frame = Image.new("RGB", (width * len(words), height + _TITLE), "white")
        frame.paste(titles, (0, 0))
        progress = f"{step + 1} of {len(picture.times)}: t = {time:.0f}"
        ImageDraw.Draw(frame).text((frame.width - 4, 2), progress, fill="black", font_size=12, anchor="ra")
        for place, word in enumerate(words):
            stretched = Image.fromarray(maps[word][step].astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
            frame.paste(plots.heat_overlay(large, np.clip(np.asarray(stretched), 0, 1)), (place * width, _TITLE))
        yield frame


@text.figure
def _titles(words: Sequence[str], width: int) -> Image.Image:
    """The words over their columns."""
    total, dpi = width * len(words), 110
    figure = Figure(figsize=(total / dpi, _TITLE / dpi))
    for place, word in enumerate(words):
        figure.text((place * width + 4) / total, 0.5, text.label(word, width // 10), fontsize=8, va="center")
    return plots.render(figure, dpi)


def _save_mp4(frames: Iterator[Image.Image], path: Path) -> None:
    """H.264, which every browser plays."""
    import av  # the extra `video`

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=_PER_SECOND, options=_QUALITY)
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            if number == 0:
                stream.width, stream.height = frame.size
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
