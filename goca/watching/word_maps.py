"""Maps of words in one picture: to look at, to threshold, by step and by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from goca.data.pictures import ImageSource
from goca.errors import ConfigError
from goca.figures.plots import heat_overlay
from goca.ops import minmax, resize

if TYPE_CHECKING:
    from goca.watching.seen import SeenPicture


class WordMap:
    """Where attention to one word was, in one picture.

    Attributes:
        word: as it stands in the text.
        positions: of its tokens on the text axis.
        values: (h, w) float32 on the CPU, attention probability: the mean over its tokens, and over steps, layers and heads as
            the aggregation weighs them.
    """

    def __init__(self, picture: SeenPicture, word: str, positions: tuple[int, ...]) -> None:
        self._picture, self.word, self.positions = picture, word, positions
        self.values: Tensor = picture.token_maps[list(positions)].mean(0)

    def __repr__(self) -> str:
        return f"WordMap({self.word!r}, {self.values.shape[1]} x {self.values.shape[0]}, most {float(self.values.max()):.3g})"

    @property
    def steps(self) -> Tensor:
        """(evaluations, h, w) the same of every evaluation of the denoiser; raises ConfigError unless they were kept."""
        return self._picture.step_maps(self.positions)

    @property
    def layers(self) -> dict[str, Tensor]:
        """Layer -> (h, w), the mean over heads, as weighed, and steps; raises ConfigError unless they were kept."""
        return self._picture.layer_maps(self.positions)

    def overlay(self, image: ImageSource) -> Image.Image:
        """The map over the picture, from its smallest to its largest value."""
        picture = self._picture.read(image)
        large = resize(minmax(self.values)[None], picture.shape[:2])[0]
        return heat_overlay(picture, large.numpy())

    def mask(self, threshold: float = 0.4, size: tuple[int, int] | None = None) -> np.ndarray:
        """Where the map, stretched to 0 ... 1, is above a threshold; DAAM's is 0.4.

        Args:
            size: (H, W) of the mask; None is the picture's.

        Returns:
            (H, W) bool.
        """
        return (minmax(resize(self.values[None], size or self._picture.size)) > threshold)[0].numpy()


class Words(Mapping[str, WordMap]):
    """Maps by word. Iterating gives the text's own words; any other phrase that stands in the text can be asked for too."""

    def __init__(self, picture: SeenPicture) -> None:
        self._picture = picture

    def __getitem__(self, word: str) -> WordMap:
        if not isinstance(word, str):
            raise ConfigError(f"words are asked for by name, such as seen.words['cat']; got {word!r}")
        table, prompt = self._picture.read_words()
        for class_id, positions in prompt.class_tokens.items():
            if table.names[class_id] == word.lower():
                return WordMap(self._picture, word, positions)
        table, prompt = self._picture.read_words((word,))
        if not prompt.class_tokens:
            raise ConfigError(f"no token stands for {word!r}: {'; '.join(prompt.warnings)}")
        return WordMap(self._picture, word, next(iter(prompt.class_tokens.values())))

    def __iter__(self) -> Iterator[str]:
        table, prompt = self._picture.read_words()
        return (table.names[class_id] for class_id in prompt.class_tokens)

    def __len__(self) -> int:
        return len(self._picture.read_words()[1].class_tokens)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.get(word) is not None

    def get(self, word: str, default: Any = None) -> Any:
        """The map of a word, or `default` where the text does not contain it."""
        try:
            return self[word]
        except ConfigError:
            return default

    def __repr__(self) -> str:
        return f"Words({', '.join(self)})"
