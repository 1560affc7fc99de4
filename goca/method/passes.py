"""How often, and how noisy, a picture is shown to the model for one reading of its attention."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_Timestep = Annotated[int, Field(ge=0, le=999)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Passes:
    """Forwards whose attention is averaged before anything else happens; `Views` average finished maps instead.

    Args:
        timesteps: noise level of each forward, 0 ... 999; null is the model's own, once.
        clean: show the picture without noise, whatever the time step says.
    """

    timesteps: tuple[_Timestep, ...] | None = None
    clean: bool = False

    def __len__(self) -> int:
        return len(self.timesteps or (None,))
