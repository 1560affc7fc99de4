"""The call of a pipeline that is running: its prompts and where its loop stands, read from the interpreter's stack.

A pipeline tells its denoiser embeddings, not words. Its own variables know the words, in every family by the same names, and
they can be looked at without changing anything.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from goca.errors import ConfigError, ModelError


@dataclass(frozen=True)
class PipelineCall:
    """One moment of a pipeline's `__call__`.

    Args:
        frame: of the call; the same object for as long as the call lasts.
        variables: its local variables by name.
    """

    frame: FrameType
    variables: Mapping[str, Any]

    @property
    def iteration(self) -> int:
        """Which turn of the denoising loop runs."""
        return int(self._of_loop("i"))

    @property
    def time(self) -> float:
        """The noise level of this turn, 0 ... 1000."""
        return float(self._of_loop("t"))

    def _of_loop(self, name: str) -> Any:
        if name not in self.variables:
            kind = type(self.variables["self"]).__name__
            raise ModelError(
                f"the call of {kind} has no loop `for i, t in enumerate(timesteps)` as diffusers' have: it hides its steps"
            )
        return self.variables[name]

    @property
    def images_per_prompt(self) -> int:
        return int(self.variables.get("num_images_per_prompt") or 1)

    def texts(self, names: Sequence[str]) -> list[str] | None:
        """The prompts of the call under the first of these names that has any; None where embeddings were given instead."""
        for name in names:
            value = self.variables.get(name)
            if value is not None:
                return [value] if isinstance(value, str) else [str(text) for text in value]
        return None

    def check_one_text(self, names: Sequence[str]) -> None:
        """Refuse a call that gives its text encoders different texts, of which one axis of attention cannot say which it shows.

        Raises:
            ConfigError: naming the arguments.
        """
        if len(names) > 1:
            return  # the family knows which text attention sees
        first = self.texts(names)
        for name in ("prompt_2", "prompt_3", "prompt_4"):
            other = self.texts([name])
            if other is not None and other != first:
                raise ConfigError(
                    f"{name} differs from prompt: their tokens share one axis of attention, so that no word could be told; "
                    f"leave {name} out while the pipeline is watched"
                )


def running_call(pipeline: Any) -> PipelineCall | None:
    """The innermost call of this pipeline that is running in this thread, as seen from inside it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            variables = frame.f_locals
            if variables.get("self") is pipeline:
                return PipelineCall(frame, variables)
        frame = frame.f_back
    return None
