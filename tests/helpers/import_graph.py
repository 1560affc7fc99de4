"""The imports of the package, read from its source: which module, and which room, needs which.

    python -m tests.helpers.import_graph        the rooms as a Mermaid graph

A room is a folder of `goca/`, or a module beside the folders.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from goca.paths import PACKAGE

Graph = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("goca", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, at its head or later."""
    known = modules()
    return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def _imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield deeper if deeper in known else node.module


def room(module: str) -> str:
    """The room of a module.

    >>> room("goca.hub.repositories"), room("goca.segmentor")
    ('hub', 'segmentor')
    """
    return module.split(".")[1] if "." in module else module


def rooms() -> dict[str, set[str]]:
    """Room -> the other rooms that its modules import."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, targets in imports().items():
        found[room(module)] |= {room(target) for target in targets} - {room(module)}
    return dict(found)


def circle(graph: Graph) -> list[str]:
    """Rooms that lead back to their beginning; empty where there is no such way."""
    done: set[str] = set()

    def walk(node: str, way: tuple[str, ...]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := walk(target, (*way, node)):
                return found
        done.add(node)
        return []

    return next((found for start in sorted(graph) if (found := walk(start, ()))), [])


def commands() -> list[str]:
    """Modules that `python -m` runs."""
    return [name for name, path in modules().items() if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")]


def drawn_arrows(graph: Graph) -> list[tuple[str, str]]:
    """The arrows of the graph, without those that a longer way makes superfluous."""
    return [
        (source, target)
        for source in sorted(graph)
        for target in sorted(graph[source])
        if not any(_leads(graph, other, target) for other in graph[source] if other != target)
    ]


def mermaid(graph: Graph) -> str:
    """The graph in Mermaid's notation."""
    return "\n".join(["graph TD", *(f"    {source} --> {target}" for source, target in drawn_arrows(graph))])


def _leads(graph: Graph, source: str, target: str) -> bool:
    return source == target or any(_leads(graph, other, target) for other in graph.get(source, ()))


if __name__ == "__main__":
    print(mermaid(rooms()))
