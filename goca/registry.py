"""Parts of the method that anyone can add: by a decorator, or by the dotted path of something in a module of one's own."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, Generic, TypeVar

from goca.errors import ConfigError

T = TypeVar("T")


class Registry(dict[str, T], Generic[T]):
    """The parts of one kind by name.

    Args:
        setting: the configuration key that chooses one, for messages.
        kind: what a part is called in messages, such as "head method".
        instance_of: the type that a part has to have; None: anything that can be called.
    """

    def __init__(self, setting: str, kind: str, instance_of: type | None = None) -> None:
        super().__init__()
        self.setting, self.kind, self.instance_of = setting, kind, instance_of
        self._origins: dict[str, str] = {}

    def register(self, name: str, part: T, origin: str) -> None:
        """Make a part known under a name. `origin` is its dotted path; the same one may come again, as in a notebook.

        Raises:
            ConfigError: the name belongs to another part, whose results would change.
        """
        known = self._origins.setdefault(name, origin)
        if known != origin:
            raise ConfigError(f"{self.setting}: two {self.kind}s are called {name!r}: {known} and {origin}; rename yours")
        self[name] = part

    def find(self, name: str) -> T:
        """The part of that name, or the one at that dotted path, such as `my_module.my_method`.

        Raises:
            ConfigError: there is none; the message names the choices.
        """
        if name in self:
            return self[name]
        if "." not in name:
            near = difflib.get_close_matches(name, self, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"{self.setting}: there is no {self.kind} {name!r}{hint}; known are {', '.join(self)}, "
                "or give a dotted path such as my_module.my_function"
            )
        try:
            part = load(name)
        except ConfigError as error:
            raise ConfigError(f"{self.setting}: {error}. Known by name are {', '.join(self)}") from error
        if not (callable(part) if self.instance_of is None else isinstance(part, self.instance_of)):
            wanted = "a function" if self.instance_of is None else f"a {self.instance_of.__name__}"
            raise ConfigError(f"{self.setting}: {name} is not a {self.kind}: it is a {type(part).__name__}, not {wanted}")
        return part


def load(path: str) -> Any:
    """What a dotted path names: an attribute of a module that Python finds in the current folder, on PYTHONPATH or installed.

    Raises:
        ConfigError: there is no such module or attribute, or the module fails while it is imported.
    """
    module, _, attribute = path.rpartition(".")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no module {error.name!r}; modules are looked for in the current folder and on PYTHONPATH"
        ) from error
    except Exception as error:  # whatever a user's module may raise
        raise ConfigError(f"{path}: importing {module} failed: {type(error).__name__}: {error}") from error
    if not hasattr(found, attribute):
        raise ConfigError(f"{path}: the module {module} has no {attribute!r}")
    return getattr(found, attribute)


def dotted_path(part: object) -> str:
    """Where a function or class is defined: `module.name`."""
    return f"{part.__module__}.{part.__qualname__}"  # type: ignore[attr-defined]
