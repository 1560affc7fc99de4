"""What was seen of a drawing: maps of words, steps and layers, segmentations and files. `goca.watch` hands it out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from goca.attention.call import AttentionCall
from goca.attention.statistics import Observation
from goca.data.base import Sample
from goca.data.pictures import ImageSource, read_picture
from goca.errors import ConfigError, ModelError
from goca.figures.attention_view import AttentionView
from goca.segmentation import Segmentation, Threshold, background_of
from goca.segmentor import Row, Segmentor
from goca.watching.reading import Read, Reading
from goca.watching.word_maps import Words

_NOTHING = "nothing was drawn while the pipeline was watched: call it, for a step at least, inside `with goca.watch(pipe)`"


class SeenPicture:
    """What was seen of one picture and one text: the prompt, the negative prompt, or other words that were read.

    Args:
        reading: the sums.
        index: the picture's place among those drawn.
        segmentor: the method.
        compression: pixels that a latent pixel is wide.
    """

    def __init__(self, reading: Reading, index: int, segmentor: Segmentor, size: tuple[int, int]) -> None:
        self._reading, self._index, self._segmentor, self.size = reading, index, segmentor, size
        self._found: tuple[int, Tensor, Observation] | None = None

    def __repr__(self) -> str:
        height, width = self.size
        return f"SeenPicture({width} x {height} pixels, {self.text!r}, {len(self.times)} evaluations)"

    @property
    def text(self) -> str:
        """As the tokenizer was given it."""
        return self._reading.texts[self._index]

    @property
    def times(self) -> list[float]:
        """Noise level (0 ... 1000) of each evaluation of the denoiser; schedulers of second order make two a step."""
        return list(self._reading.statistics.evaluations)

    @property
    def layers(self) -> dict[str, float]:
        """Layer -> its mean weight; they add up to 1."""
        weights = self._observed()[1].layer_weights
        return {name: float(weight[self._index]) for name, weight in weights.items()}

    @property
    def words(self) -> Words:
        self._observed()
        return Words(self)

    @property
    def token_maps(self) -> Tensor:
        """Attention probability of every position of the text axis: (n, h, w) float32 on the CPU."""
        return self._observed()[0][self._index].float().cpu()

    @property
    def tokens(self) -> tuple[str, ...]:
        """A readable string for each position of the text axis."""
        self._observed()
        return self._reading.tokens_of(self._index)

    def read_words(self, words: Sequence[str] = ()) -> Read:
        """Names and positions of the text's words; raises ConfigError where it does not contain one."""
        self._observed()
        return self._reading.words_of(self._index, words)

    def positions_of_words(self) -> dict[str, tuple[int, ...]]:
        """Word -> its tokens' positions on the text axis; empty for a text that has no words."""
        try:
            return {word: found.positions for word, found in self.words.items()}
        except ConfigError:
            return {}

    def step_maps(self, positions: Sequence[int]) -> Tensor:
        """(evaluations, h, w): the mean over positions of every evaluation."""
        kept = self._reading.statistics.step_maps
        if not kept:
            raise ConfigError("single steps are kept on request: goca.watch(pipe, steps=32), the shorter side of their maps")
        places = self._kept_places(positions)
        return torch.stack([maps[self._index, places].float().mean(0).cpu() for maps in kept])

    def layer_maps(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Layer -> (h, w): the mean over positions and evaluations."""
        kept = self._reading.statistics.layer_maps
        if not kept:
            raise ConfigError("single layers are kept on request: goca.watch(pipe, layers=32), the shorter side of their maps")
        places = self._kept_places(positions)
        return {name: maps[self._index, places].mean(0).float().cpu() for name, maps in kept.items()}

    def _kept_places(self, positions: Sequence[int]) -> list[int]:
        kept = self._reading.statistics.positions or []
        if missing := [position for position in positions if position not in kept]:
            raise ConfigError(f"of single steps and layers the content words alone are kept, not positions {missing}")
        return [kept.index(position) for position in positions]

    # --------------------------------------------------------------------------------------------------- with the picture
    def segmentation(self, image: ImageSource, words: Sequence[str] = (), background: Threshold = None) -> Segmentation:
        """The picture with its words as classes, by the stages of the method that was watched with.

        Args:
            image: the drawn picture, at any size.
            words: of the text; none takes all its words.
            background: as of `Segmentor.segment`: how high a word has to score; None lets every pixel belong to a word.

        Raises:
            ConfigError: a word that the text lacks, a picture of another shape, or a background that the method cannot have.
                ModelError: nothing was drawn.
        """
        view = self.view(image, words, background)
        return Segmentation(view.image, view.classes, view.prediction)

    def view(self, image: ImageSource, words: Sequence[str] = (), background: Threshold = None) -> AttentionView:
        """Everything about the picture that can be looked at or saved, as `goca.observe` shows it of an existing one."""
        table, prompt = self.read_words(words)
        if not prompt.class_tokens:
            raise ConfigError(f"no token stands for a word of {self.text!r}: {'; '.join(prompt.warnings)}")
        competes, tau = background_of(background, len(table) - 1, self._segmentor.method)
        array = self.read(image)
        observation = self._one()
        pixels = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1
        sample = Sample("drawn", array, None, (), pixels=pixels)
        rows = [Row(0, sample, prompt, sample)]
        with torch.inference_mode():
            prediction = self._segmentor.finish(sample, (prompt,), rows, observation, len(table), competes, tau)
        return AttentionView(array, prompt, table, observation, prediction, {})

    def read(self, image: ImageSource) -> np.ndarray:
        """(H, W, 3) uint8 of the drawn picture; raises ConfigError where it has another shape."""
        array = read_picture(image).pixels
        height, width = self.size
        if abs(array.shape[0] * width - array.shape[1] * height) > max(height, width) * 2:
            raise ConfigError(
                f"the picture given is {array.shape[1]} x {array.shape[0]} pixels, the one drawn is {width} x {height}: they "
                "are not the same"
            )
        return array

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, as `save` stores it."""
        weights = self._observed()[1]
        found = {"token_maps": self.token_maps, "times": torch.tensor(self.times)}
        found["layer_weights"] = torch.tensor(list(self.layers.values()))
        found |= {f"head_weights/{name}": heads[self._index].float().cpu() for name, heads in weights.head_weights.items()}
        statistics = self._reading.statistics
        if statistics.step_maps or statistics.layer_maps:
            found["kept_positions"] = torch.tensor(statistics.positions)
        if statistics.step_maps:
            found["step_maps"] = torch.stack([maps[self._index].cpu() for maps in statistics.step_maps])
        found |= {f"layer_maps/{name}": maps[self._index].cpu() for name, maps in statistics.layer_maps.items()}
        return {name: tensor.contiguous().clone() for name, tensor in found.items()}

    # --------------------------------------------------------------------------------------------------------- the sums
    def _observed(self) -> tuple[Tensor, Observation]:
        count = len(self._reading.statistics.evaluations)
        if not count:
            raise ModelError(_NOTHING)
        if self._found is None or self._found[0] != count:
            with torch.no_grad():
                mean, observation = self._reading.statistics.finish()
            if not mean[self._index].isfinite().all():
                raise ModelError("the model gave attention that is not finite; draw in float32 or bfloat16")
            self._found = (count, mean, observation)
        return self._found[1:]

    def _one(self) -> Observation:
        """The observation of this picture alone."""
        everything, index = self._observed()[1], self._index
        one = slice(index, index + 1)
        kept = self._reading.statistics.positions or []
        layer_maps = {}
        for name, maps in self._reading.statistics.layer_maps.items():
            layer_maps[name] = maps.new_zeros(1, everything.token_maps.shape[1], *maps.shape[-2:])
            layer_maps[name][:, kept] = maps[one]
        calls: dict[str, AttentionCall] = {name: call.image_at(index) for name, call in everything.self_attention_calls.items()}
        parts: dict[str, Any] = {
            "token_maps": everything.token_maps[one],
            "layer_weights": {name: weight[one] for name, weight in everything.layer_weights.items()},
            "head_weights": {name: weight[one] for name, weight in everything.head_weights.items()},
            "layer_maps": layer_maps,
            "features": {name: feature[one] for name, feature in everything.features.items()},
            "self_attention_calls": calls,
            "level_maps": tuple((maps[one], weight) for maps, weight in everything.level_maps),
        }
        return replace(everything, **parts)


class Seen(Sequence[SeenPicture]):
    """What was seen while a pipeline drew: `seen[i]` is a picture; of a single one everything can be asked for directly.

    Attributes:
        reads: text -> what was seen of other words that were read.
    """

    def __init__(self, segmentor: Segmentor) -> None:
        self._segmentor = segmentor
        self._pictures: list[SeenPicture] = []
        self._negative: list[SeenPicture] | None = None
        self.reads: dict[str, Seen] = {}
        self.wants_negative = False

    def begin(self, prompt: Reading, reads: Mapping[str, Reading], size: tuple[int, int]) -> None:
        """The first forward of a drawing has been met."""
        self._pictures = self._of(prompt, size)
        for text, reading in reads.items():
            self.reads[text] = Seen(self._segmentor)
            self.reads[text]._pictures = self._of(reading, size)

    def add_negative(self, reading: Reading, size: tuple[int, int]) -> None:
        """So has the first of a negative prompt."""
        self._negative = self._of(reading, size)

    def _of(self, reading: Reading, size: tuple[int, int]) -> list[SeenPicture]:
        return [SeenPicture(reading, index, self._segmentor, size) for index in range(len(reading.texts))]

    @property
    def negative(self) -> Seen:
        """What was seen of the negative prompt.

        Raises:
            ConfigError: it was not asked for. ModelError: the pipeline ran without one.
        """
        if not self.wants_negative:
            raise ConfigError("the negative prompt is watched on request: goca.watch(pipe, negative=True)")
        if self._negative is None:
            raise ModelError(
                "no negative prompt was seen: the pipeline drew nothing, or without classifier-free guidance, which distilled "
                "models and a guidance scale of 1 do without"
            )
        found = Seen(self._segmentor)
        found._pictures = self._negative
        return found

    def __getitem__(self, index: Any) -> Any:
        if not self._pictures:
            raise ModelError(_NOTHING)
        return self._pictures[index]

    def __len__(self) -> int:
        return len(self._pictures)

    def __repr__(self) -> str:
        return f"Seen({len(self)} pictures)" if len(self) != 1 else f"Seen({self._pictures[0]!r})"

    @property
    def only(self) -> SeenPicture:
        """The picture, where one alone was drawn; raises ConfigError otherwise."""
        if len(self) > 1:
            raise ConfigError(f"{len(self)} pictures were drawn: say which, as in seen[0].words")
        picture: SeenPicture = self[0]
        return picture

    @property
    def words(self) -> Words:
        """Maps of the words of the only picture's prompt."""
        return self.only.words

    @property
    def steps(self) -> list[float]:
        """Noise level of every evaluation of the denoiser."""
        picture: SeenPicture = self[0]
        return picture.times

    @property
    def layers(self) -> dict[str, float]:
        """Mean weights of the layers in the only picture."""
        return self.only.layers

    def segmentation(self, image: ImageSource, words: Sequence[str] = (), background: Threshold = None) -> Segmentation:
        """See `SeenPicture.segmentation`."""
        return self.only.segmentation(image, words, background)

    def view(self, image: ImageSource, words: Sequence[str] = (), background: Threshold = None) -> AttentionView:
        """See `SeenPicture.view`."""
        return self.only.view(image, words, background)

    def save(self, path: str | Path) -> Path:
        """Everything about every picture in one safetensors file.

        Its metadata hold prompts, tokens and layers as lines, and words with their positions among the tokens as JSON.
        """
        several = len(self) > 1
        tensors: dict[str, Tensor] = {}
        facts: dict[str, str] = {"layers": "\n".join(self[0].layers)}
        for index, picture in enumerate(self):
            prefix = f"{index}/" if several else ""
            tensors |= {f"{prefix}{name}": tensor for name, tensor in picture.tensors().items()}
            facts[f"{prefix}prompt"] = picture.text
            facts[f"{prefix}tokens"] = "\n".join(picture.tokens)
            facts[f"{prefix}words"] = json.dumps(picture.positions_of_words(), ensure_ascii=False)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=facts)
        return path
