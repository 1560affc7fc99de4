"""What a pipeline's own call of its denoiser says: how large the picture is, whose rows are whose, and where its text lies.

Observing an image, a backbone calls the denoiser itself; while a pipeline draws, these have to be read back from the arguments.
Adapters override what differs for their family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from goca.errors import ModelError
from goca.prompts.prompt import TextSegment


class Drawing:
    """Mixin of `Backbone`; arguments are those of the denoiser's forward by name."""

    negative_first: ClassVar[bool] = True  # of the two halves of guidance in one batch
    text_changes: ClassVar[bool] = False  # whether the text that cross-attention reads differs between noise levels
    prompt_names: ClassVar[tuple[str, ...]] = ("prompt",)  # arguments of the pipeline that attention's text may come from

    if TYPE_CHECKING:  # of the backbone

        @property
        def patch(self) -> int: ...

        @property
        def text_segments(self) -> tuple[TextSegment, ...]: ...

    def latent_grid(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """(h, w) of the latents that are denoised.

        Raises:
            ModelError: the sequence holds more than the picture that is drawn.
        """
        latents = self._latents(arguments)
        if latents.ndim < 4:  # a packed sequence, whose adapter has to say how it lies
            raise ModelError(f"{type(self).__name__} does not say how the pictures that its pipeline draws lie in the sequence")
        return latents.shape[-2], latents.shape[-1]

    def drawn_rows(self, arguments: Mapping[str, Any]) -> int:
        """How many pictures the denoiser is given, both halves of guidance counted."""
        return len(self._latents(arguments))

    def beside_the_tap(self) -> AbstractContextManager[None]:
        """What has to be open around a call of the denoiser, beside the tap, for `canonical` to know all it reads."""
        return nullcontext()

    def note_call(self, arguments: Mapping[str, Any]) -> None:
        """The same from a call of the denoiser."""

    def text_keys(self, arguments: Mapping[str, Any]) -> int | None:
        """How many positions of text the denoiser is given, as `fit_text` takes it; None where every text has the same."""
        text = arguments.get("encoder_hidden_states")
        return text.shape[1] if torch.is_tensor(text) else None

    def picture_starts(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Where on the first axis of rotary positions each picture stands, (B,); None where its text does not decide that."""
        return None

    @property
    def rotary_axis(self) -> tuple[int, float]:
        """Channels of that axis, the first ones, and the base of their frequencies."""
        raise NotImplementedError

    def fit_call(self, call: Mapping[str, Any]) -> None:
        """Take from the pipeline's call what `canonical` has to know of it.

        Args:
            call: its arguments and other variables by name.
        """
        if getattr(self, "text_axis", None) is not None:  # attention holds a prompt's own tokens alone, up to this many
            self._fit(call.get("max_sequence_length") or self.__dict__["text_length"])

    def fit_text(self, keys: int) -> None:
        """Make the text axis as long as the pipeline has made it: so many positions of text are in attention."""
        if "text_length" in self.__dict__ and getattr(self, "text_axis", None) is None:
            self._fit(keys - self.text_segments[-1].start)

    def _fit(self, length: int) -> None:
        self.__dict__["text_length"] = length
        self.__dict__.pop("text_segments", None)

    def drawn_segments(self, negative: bool) -> tuple[TextSegment, ...]:
        """How a prompt, or a negative one, lies on the text axis, once `fit_text` has been told its length."""
        return self.text_segments

    def drawn_text(self, text: str, call: Mapping[str, Any]) -> str:
        """The text as the pipeline hands it to its tokenizers, which may have been cleaned."""
        preprocess = getattr(self.pipeline, "_text_preprocessing", None)  # type: ignore[attr-defined]
        if preprocess is None:
            return text
        (cleaned,) = preprocess(text, clean_caption=bool(call.get("clean_caption")))
        return str(cleaned)

    def _latents(self, arguments: Mapping[str, Any]) -> Any:
        found = arguments.get("hidden_states", arguments.get("sample"))
        if found is None or (found if torch.is_tensor(found) else found[0]).ndim < 3:
            raise ModelError("the denoiser is not given latents in the way that its family is known for")
        return found


def rotated(keys: Tensor, steps: Tensor, channels: int, base: float) -> Tensor:
    """Keys (B, H, n, d) so many places (B,) further on the first axis of rotary positions (arXiv:2104.09864)."""
    half = torch.arange(0, channels, 2, device=keys.device, dtype=torch.float32)
    angles = steps.to(half)[:, None] * base ** (-half / channels)  # (B, channels / 2)
    factors = torch.polar(torch.ones_like(angles), angles)[:, None, None]
    pairs = torch.view_as_complex(keys[..., :channels].float().unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * factors).flatten(-2).to(keys)
    return torch.cat([turned, keys[..., channels:]], dim=-1)


def packed_grid(rows: Tensor, columns: Tensor, tokens: int, patch: int) -> tuple[int, int]:
    """The latent grid of a packed sequence from the rows and columns that its tokens stand in.

    Raises:
        ModelError: there are more tokens than places, such as those of a reference picture.
    """
    height, width = (int(places.max() - places.min()) + 1 for places in (rows, columns))
    if height * width != tokens:
        raise ModelError(
            f"the denoiser is given {tokens} image tokens where the picture has {height} x {width}: pictures beside the one "
            "that is drawn (references, controls) cannot be told apart"
        )
    return height * patch, width * patch


def shaped_grid(shapes: Sequence[Any], tokens: int, patch: int) -> tuple[int, int]:
    """The same from (frames, rows, columns) of the first row of the batch, which may stand in a list of several pictures'.

    Raises:
        ModelError: there are several pictures.
    """
    first = shapes[0][0] if isinstance(shapes[0], list) else shapes[0]
    rows, columns = torch.arange(first[1]), torch.arange(first[2])
    return packed_grid(rows, columns, tokens, patch)
