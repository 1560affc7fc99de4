"""What every configuration key means: the comment beside it in its file, else its line in the docstring of its class.

Nothing heavy is imported for it: files are read as text, classes as syntax trees. `--help` and the reference pages use it.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from goca.paths import PACKAGE

_ENTRY = re.compile(r"^ {4,}(\w+(?:, \w+)*): (\S.*)$")


def explanations(
    cfg: Mapping[str, Any], config_name: str, choices: Mapping[str, Any], sources: Sequence[Path]
) -> dict[str, str]:
    """Dotted key -> what it means, for the keys of a composed configuration.

    Args:
        cfg: the composed configuration as plain data, references as they stand.
        config_name: the primary configuration.
        choices: group -> chosen option.
        sources: folders with configurations, the first one first.
    """
    found: dict[str, str] = {}
    for group, option in choices.items():
        if option and "/" not in group:
            found = _option(group, str(option), sources, frozenset()) | found
    for key, text in file_comments(_find(sources, f"{config_name}.yaml")).items():
        if not key.startswith(("hydra", "defaults")):
            found[key] = text
    for section, content in cfg.items():
        if isinstance(content, Mapping) and isinstance(content.get("_target_"), str):
            for name, text in parameters(content["_target_"]).items():
                found.setdefault(f"{section}.{name}", text)
    return found


def _option(group: str, option: str, sources: Sequence[Path], seen: frozenset[str]) -> dict[str, str]:
    """Comments of one option's file, and of the files that its defaults name, by key under the group's section."""
    file = _find(sources, f"{group}/{option}.yaml")
    if file is None or option in seen:
        return {}
    found = {f"{group}.{key}": text for key, text in file_comments(file).items() if not key.startswith("defaults")}
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    for entry in content.get("defaults", []) if isinstance(content, dict) else []:
        if isinstance(entry, str) and entry != "_self_":
            found = _option(group, entry.partition("@")[0], sources, seen | {option}) | found
    return found


def _find(sources: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in sources if (folder / name).is_file()), None)


def file_comments(file: Path | None) -> dict[str, str]:
    """Dotted key -> the comment beside it in a YAML file, its continuation lines included; else the comment above it."""
    return {} if file is None else comments(file.read_text(encoding="utf-8"))


def comments(text: str) -> dict[str, str]:
    """The same, of a YAML text.

    >>> comments("# head\\na: 1  # one\\nb:\\n  # of b\\n  c: [x, '#']   # list\\n                # of c\\n")
    {'a': 'one', 'b.c': 'list of c'}
    """
    lines = text.splitlines()
    places = dict(_keys(yaml.compose(text, Loader=yaml.SafeLoader), ""))
    starts = {line for line, _, _ in places.values()}
    head = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    found = {}
    for key, (first, last, column) in places.items():
        after = lines[last][column:] if last < len(lines) else ""
        beside = re.match(r"\s*#+ ?(.*)", after) if last not in starts - {first} else None
        parts = [beside[1]] if beside else []
        if beside:
            where = lines[last].index("#", column)
            for line in lines[last + 1 :]:
                if line.strip().startswith("#") and abs(line.index("#") - where) < 2 and where > 2:
                    parts.append(line.strip(" #"))
                else:
                    break
        else:
            above = first - 1
            while above >= head and lines[above].strip().startswith("#") and lines[above].index("#") == _indent(lines[first]):
                parts.insert(0, lines[above].strip(" #"))
                above -= 1
        if parts:
            found[key] = " ".join(parts)
    return found


def _keys(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Dotted key -> its line, and the line and column after which its comment would stand."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        literal = isinstance(value, yaml.ScalarNode) and value.style in ("|", ">")
        end = key.end_mark if block or literal else value.end_mark
        yield name, (key.start_mark.line, end.line, end.column + (1 if block or literal else 0))
        yield from _keys(value, f"{name}.")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


@cache
def parameters(target: str) -> dict[str, str]:
    """Parameter -> its line in the docstrings of a class of this package and of the classes it inherits from.

    >>> parameters("goca.method.passes.Passes")["timesteps"][:11]
    'noise level'
    """
    module, _, name = target.rpartition(".")
    file = _source(module)
    if file is None:
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module for alias in node.names}  # fmt: skip
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            inherited: dict[str, str] = {}
            for base in reversed(node.bases):
                if isinstance(base, ast.Name):
                    inherited |= parameters(imported.get(base.id, f"{module}.{base.id}"))
            own = dict(_entries(ast.get_docstring(node, clean=False) or ""))
            return inherited | own | _nested(node, imported)
    return parameters(imported[name]) if name in imported else {}


def _nested(node: ast.ClassDef, imported: Mapping[str, str]) -> dict[str, str]:
    """Parameters of parameters that are objects themselves: `layers.cross`."""
    typed = [(part.target.id, part.annotation.id) for part in node.body if isinstance(part, ast.AnnAssign)
             and isinstance(part.target, ast.Name) and isinstance(part.annotation, ast.Name)]  # fmt: skip
    return {
        f"{field}.{name}": text
        for field, kind in typed
        if kind in imported
        for name, text in parameters(imported[kind]).items()
    }


def _source(module: str) -> Path | None:
    if module.partition(".")[0] != "goca":
        return None
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    """`name: text` lines of a docstring, with the lines that go on deeper."""
    names: list[str] = []
    depth, text = 0, ""
    for line in [*docstring.splitlines()[1:], ""]:
        entry = _ENTRY.match(line)
        if names and line.strip() and _indent(line) > depth:
            text += f" {line.strip()}"
            continue
        for name in names:
            yield name, text.removesuffix(".")
        names = []
        if entry:
            names, depth, text = entry[1].split(", "), _indent(line), entry[2]


def annotated(dumped: str, explained: Mapping[str, str], width: int = 118) -> str:
    """YAML with each key's explanation beside it, or above it where it is too long for the line.

    >>> print(annotated("seed: 0\\nrun:\\n  dir: out", {"seed": "noise", "run.dir": "folder"}))
    seed: 0  # noise
    run:
      dir: out  # folder
    """
    places = {line: key for key, (line, _, _) in _keys(yaml.compose(dumped, Loader=yaml.SafeLoader), "")}
    lines = []
    for number, line in enumerate(dumped.splitlines()):
        text = explained.get(places.get(number, ""))
        if text is None:
            lines.append(line)
        elif len(line) + len(text) + 4 <= width:
            lines.append(f"{line}  # {text}")
        else:
            lines += [*_wrapped(text, _indent(line), width), line]
    return "\n".join(lines) + "\n" * dumped.endswith("\n")


def _wrapped(text: str, indent: int, width: int) -> list[str]:
    mark = " " * indent + "# "
    return textwrap.wrap(text, width, initial_indent=mark, subsequent_indent=mark)
