"""A labelled data set by generation: each picture's words as a label map, read from the attention that drew it.

    images/<id>.png   the pictures
    masks/<id>.png    0 where no class is, 1 ... n: the classes in the order of the list
    classes.txt       the list
    scores/<id>.npz   `words`, `scores` (words, h, w) float16, `prompt`, and `settings` of the method

`dataset=folder dataset.root=DIR` reads it.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image

from goca.backbones.base import Backbone
from goca.data.classes import ClassTable
from goca.data.masks import voc_palette
from goca.errors import ConfigError
from goca.figures.plots import overlay_figure
from goca.generation.pictures import PictureFolder
from goca.generation.pipeline import Request
from goca.method import Method
from goca.prompts.sentence import check_names, content_words, occurrences
from goca.segmentation import Threshold, background_of
from goca.segmentor import Segmentor
from goca.watching.reading import names_in
from goca.watching.seen import Seen, SeenPicture
from goca.watching.session import Options, Watch, while_drawing

log = logging.getLogger(__name__)
_MOST = 254  # ids that fit a mask beside 0 and void


class LabelFolder:
    """Writes labels beside pictures.

    Args:
        pictures: the folder.
        requests: every picture of it; their words are the classes where none are given.
        method: makes labels of what is drawn.
        classes: names to label; words of a prompt that are none of them stay without a label.
        background: what a word must score to be labelled, as in `Segmentor.segment`; None labels every pixel.
        settings: fingerprint of what decides a label beside these.

    Raises:
        ConfigError: no class, more than fit a mask, one that cannot be looked for, another list than the folder has, or a
            method or a background that cannot be used on a drawing.
    """

    def __init__(
        self,
        pictures: PictureFolder,
        requests: Sequence[Request],
        method: Method,
        classes: Sequence[str] | None = None,
        background: Threshold = None,
        settings: str = "",
    ) -> None:
        self.method = while_drawing(method, segments=True)
        self.pictures, self.background, self.settings = pictures, background, f"{settings} {background}"
        named = [name.strip().lower() for name in check_names(classes or ())]
        self.classes = list(dict.fromkeys(named or [name for request in requests for name in words_of(request.text)]))
        if not self.classes or len(self.classes) > _MOST:
            raise ConfigError(
                f"save_labels: {len(self.classes)} classes, and 1 to {_MOST} fit a mask; name them by labels.classes=[cat,dog]"
            )
        background_of(background, len(self.classes), self.method)
        path = pictures.path / "classes.txt"
        content = "".join(f"{name}\n" for name in self.classes)
        if path.exists() and path.read_text(encoding="utf-8") != content:
            raise ConfigError(f"{path} lists other classes than this run's; set output to another folder, or remove that one")
        pictures.write(path, content.encode())
        for folder in ("masks", "scores"):
            (pictures.path / folder).mkdir(exist_ok=True)

    def watch(self, backbone: Backbone, **attention: object) -> AbstractContextManager[Seen]:
        """Watch the backbone's pipeline draw one batch."""
        return Watch(backbone.pipeline, Segmentor(backbone, self.method, **attention), Options())  # type: ignore[arg-type]

    def is_finished(self, request: Request) -> bool:
        """Whether the picture's label is there and opens.

        Raises:
            ConfigError: it was made with another method.
        """
        path = self._scores(request)
        try:
            with Image.open(self._mask(request)) as mask:
                mask.load()
            with np.load(path) as stored:
                prompt, settings = str(stored["prompt"]), str(stored["settings"])
        except (OSError, SyntaxError, ValueError, KeyError, zipfile.BadZipFile):
            return False
        if settings != self.settings:
            raise ConfigError(f"{path} was made with another method than this run's; set output to another folder")
        return prompt == request.text

    def save(self, request: Request, image: Image.Image, seen: SeenPicture) -> None:
        """Write the label map and the scores of one picture; both are complete or not there."""
        words = self._words(request)
        shape = (image.height, image.width)
        prompt = seen.read_words(words)[1] if words else None
        for warning in prompt.warnings if prompt is not None else ():
            log.warning("save_labels: %s: %s", request.image_id, warning)
        if prompt is not None and prompt.class_tokens:
            view = seen.view(image, words, self.background)
            ids = np.array([0, *(self.classes.index(name) + 1 for name in view.classes.names[1:])])
            label = ids[view.prediction.labels[0].cpu().numpy()].astype(np.uint8)
            maps = view.prediction.maps
            names = [view.classes.names[class_id] for class_id in maps.ids]
            scores = maps.scores.cpu().numpy().astype(np.float16)
        else:
            label, names, scores = np.zeros(shape, np.uint8), [], np.zeros((0, 1, 1), np.float16)
        buffer = io.BytesIO()
        facts = {"prompt": np.array(request.text), "settings": np.array(self.settings)}
        np.savez_compressed(buffer, words=np.array(names, dtype=str), scores=scores, **facts)  # type: ignore[arg-type]
        self.pictures.write(self._scores(request), buffer.getvalue())
        mask, buffer = Image.fromarray(label, mode="P"), io.BytesIO()
        mask.putpalette(np.array(voc_palette(), np.uint8).tobytes())
        mask.save(buffer, "PNG")
        self.pictures.write(self._mask(request), buffer.getvalue())

    def figure(self, request: Request) -> Image.Image:
        """A picture with its labels laid over."""
        with Image.open(self.pictures.file(request.image_id)) as picture, Image.open(self._mask(request)) as mask:
            return overlay_figure(np.asarray(picture.convert("RGB")), np.asarray(mask), ClassTable.from_names(self.classes))

    def _words(self, request: Request) -> list[str]:
        """Classes that stand in the prompt, as whole words; of "red circle" that class and not "circle"."""
        return [name for name, places in occurrences(request.text, self.classes).items() if places]

    def _mask(self, request: Request) -> Path:
        return self.pictures.path / "masks" / f"{request.image_id}.png"

    def _scores(self, request: Request) -> Path:
        return self.pictures.path / "scores" / f"{request.image_id}.npz"


def words_of(text: str) -> list[str]:
    """The names of a list, or the content words of a sentence, in lower case."""
    return [name.lower() for name in names_in(text) or content_words(text)]
