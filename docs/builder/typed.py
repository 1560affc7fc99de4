"""Types of settings in words, from the annotations that check them."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from goca.config.settings import Section


def words(kind: Any) -> str:
    """A type as a reader of a configuration needs it.

    >>> from pydantic import PositiveInt
    >>> words(PositiveInt | None), words(Literal["a", "b"]), words(tuple[str, ...])
    ('whole number above 0, or null', '`a`, `b`', 'list of texts')
    """
    if isinstance(kind, typing.ForwardRef | str):
        return str(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bounds = [text for part in inner[1:] for text in _bounds(part) if not text.endswith(str(2**63))]
        return " ".join([words(inner[0]), *bounds])
    if origin in (Union, types.UnionType):
        parts = [words(part) for part in inner if part is not type(None)]
        return ", or ".join([*dict.fromkeys(parts), *["null"] * (type(None) in inner)])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (list, tuple, set, frozenset) or (inspect.isclass(origin) and issubclass(origin, typing.Iterable)):
        if inspect.isclass(origin) and issubclass(origin, Mapping):
            return "section of keys"
        of = [part for part in inner if part is not Ellipsis]
        return "list of " + re.sub(r"^(whole number|number|text|list)\b", r"\1s", words(of[0])) if of else "list"
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return "section of keys"
    plain = {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "section of keys", Any: "anything"}
    return plain.get(kind, f"`{getattr(kind, '__name__', str(kind))}`")


def _bounds(part: Any) -> list[str]:
    found = [(Gt, "gt", "above"), (Ge, "ge", "from"), (Lt, "lt", "below"), (Le, "le", "up to")]
    stated = [f"{word} {getattr(part, name)}" for kind, name, word in found if isinstance(part, kind)]
    for extra in getattr(part, "metadata", ()):
        stated += _bounds(extra)
    return stated


@cache
def parameters_of(target: str) -> dict[str, tuple[str, Any]]:
    """Parameter of a class or function -> its type in words and its default (`inspect.Parameter.empty` where it has none)."""
    module, _, name = target.rpartition(".")
    part = getattr(import_module(module), name)
    try:
        hints = typing.get_type_hints(part.__init__ if not hasattr(part, "__pydantic_fields__") else part, include_extras=True)
    except (NameError, TypeError):
        hints = {}
    found = {}
    for key, parameter in inspect.signature(part).parameters.items():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            found[key] = (words(hints.get(key, parameter.annotation)), parameter.default)
    return found


def root_types(section: type[Section], prefix: str = "") -> dict[str, str]:
    """Dotted key -> type in words, of the keys that belong to no class of their own."""
    hints = typing.get_type_hints(section, include_extras=True)
    found = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if inspect.isclass(inner) and issubclass(inner, Section):
            found |= root_types(inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = words(hints[name])
    return found
