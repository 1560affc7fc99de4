"""Markdown of the repository as pages of the site: which files, where they go, and where their links then lead."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<!`)(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]+)?\)")
_FENCE = re.compile(r"^\s*(```|~~~)")


def sources(root: Path = ROOT) -> dict[str, str]:
    """File of the repository -> page of the site, for all Markdown that people are meant to read."""
    found = {f"docs/{path.relative_to(root / 'docs').as_posix()}": path.relative_to(root / "docs").as_posix()
             for path in sorted((root / "docs").rglob("*.md"))}  # fmt: skip
    found |= {f"experiments/{path.name}": f"experiments/{path.name}" for path in sorted((root / "experiments").glob("*.md"))}
    for path in sorted((root / "goca" / "bundled").glob("*/README.md")):
        found[path.relative_to(root).as_posix()] = f"cards/{path.parent.name}.md"
    found |= {"README.md": "index.md"} if "docs/index.md" not in found else {}
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md"):
        if (root / name).is_file():
            found[name] = name.lower()
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        found[path.relative_to(root).as_posix()] = f"tutorials/{path.stem}.md"
    return found


def stage(target: Path, pages: Mapping[str, str], root: Path = ROOT) -> None:
    """Copy pages and pictures below `target`, links between them rewritten; links to code become plain names."""
    shutil.copytree(root / "docs" / "images", target / "images", dirs_exist_ok=True)
    for source, page in pages.items():
        if source.endswith(".md"):
            text = (root / source).read_text(encoding="utf-8")
            write(target / page, normalised(relinked(text, source, pages, root)))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def relinked(text: str, source: str, pages: Mapping[str, str], root: Path = ROOT) -> str:
    """The text of a file with relative links as its page needs them.

    A link to something in the repository that is no page becomes its name; one that leads nowhere stays, and fails the build.

    >>> pages = {"docs/a.md": "a.md", "experiments/R.md": "experiments/R.md"}
    >>> relinked("[r](../experiments/R.md#x) [c](../goca/ops.py) [?](gone.md)", "docs/a.md", pages)
    '[r](experiments/R.md#x) `goca/ops.py` [?](gone.md)'
    """
    here = PurePosixPath(pages[source]).parent

    def link(match: re.Match[str]) -> str:
        picture, label, target, anchor = match.groups()
        path = os.path.normpath(PurePosixPath(source).parent / target)
        if picture and path.startswith("docs/images/"):
            return f"![{label}]({os.path.relpath(path.removeprefix('docs/'), here)})"
        if path in pages:
            return f"[{label}]({os.path.relpath(pages[path], here)}{anchor or ''})"
        return f"`{path}`" if (root / path).exists() else match.group()

    return _outside_fences(text, lambda line: _LINK.sub(link, line))


def _outside_fences(text: str, change) -> str:  # type: ignore[no-untyped-def]
    lines, fenced = [], False
    for line in text.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else change(line))
    return "\n".join(lines)


def normalised(text: str) -> str:
    """Markdown as GitHub reads it, in the words of Python-Markdown.

    A list or table needs an empty line before it, and what belongs to a numbered item four spaces instead of three.

    >>> normalised("a\\n- b\\n\\n1. c\\n\\n   d")
    'a\\n\\n- b\\n\\n1. c\\n\\n    d'
    """
    lines: list[str] = []
    numbered = fenced = False
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        item = re.match(r"([-*]|\d+\.) ", line)
        if re.match(r"\d+\. ", line):
            numbered = True
        elif line and not line.startswith(" "):
            numbered = False
        if not fenced and (item or line.startswith("|")) and before.strip():
            same = re.match(r"\s*([-*]|\d+\.) ", before) if item else before.startswith("|")
            if not same and not before.startswith(" "):
                lines.append("")
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(f" {line}" if numbered and line.startswith("   ") else line)
    return "\n".join(lines)
