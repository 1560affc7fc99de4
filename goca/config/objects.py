"""What to say where a section of the configuration cannot become its object."""

from __future__ import annotations

import re
from typing import Any

from hydra.errors import InstantiationException
from pydantic import ValidationError

from goca.errors import GocaError


def explain_instantiation(error: InstantiationException, key: str) -> str:
    """One line for each value of the section `key` that its object did not take."""
    cause: BaseException | None = error
    deepest: BaseException = error
    where = re.search(r"full_key: (\S+)", str(error))
    path = _typed(where.group(1)) if where else key
    while cause is not None:
        if isinstance(cause, ValidationError):
            issues = cause.errors()
            # A list whose entries are wrong is said to be too short as well.
            inner = {issue["loc"][:-1] for issue in issues if len(issue["loc"]) > 1}
            return "\n".join(_explain_field(path, issue, cause) for issue in issues if issue["loc"] not in inner)
        if isinstance(cause, GocaError):
            return str(cause)
        deepest, cause = cause, cause.__cause__
    return f"{path}: {type(deepest).__name__}: {first_line(deepest)}"


def _typed(path: str) -> str:
    """A path as one types it.

    >>> _typed("refinement.steps0"), _typed("refinement.steps[0].rounds1")
    ('refinement.steps.0', 'refinement.steps.0.rounds.1')
    """
    return re.sub(r"([a-z])(\d+)$", r"\1.\2", re.sub(r"\[(\d+)\]", r".\1", path))


def _explain_field(path: str, issue: Any, error: ValidationError) -> str:
    location = ".".join(str(part) for part in issue["loc"])
    name = f"{path}.{location}" if location else path
    if issue["type"] in ("unexpected_keyword_argument", "missing"):
        verb = "is not a key of" if issue["type"].startswith("unexpected") else "is missing from"
        return f"{name}: '{location}' {verb} {error.title}"
    message = issue["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = issue["input"]
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{name}: {message}{shown}"


def first_line(error: BaseException) -> str:
    """The first line of a message that says something."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"^\w+ raised while resolving interpolation: ", "", line)
