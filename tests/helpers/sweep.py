"""Types of what tests of sweeps are given."""

from collections.abc import Callable

Sweep = Callable[..., int | str | None]  # overrides -> exit code of `goca.run -m`
