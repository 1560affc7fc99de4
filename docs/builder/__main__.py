"""`python -m docs.builder`: write the pages to build/docs and make the site in build/site; anything amiss fails.

The navigation in mkdocs.yml is written by hand. A page in docs/ that it does not name stands under its last section, so that a
page is added by putting a file there.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from docs.builder import notebooks, settings, written
from docs.builder.pages import ROOT, sources, stage, write

BUILD = ROOT / "build"
_FETCHED = "https://unpkg.com/iframe-worker/shim"
_UNLISTED = ("index.md", "cards/", "experiments/", "tutorials/", "reference/")  # reached from other pages, or by a rule below


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags for Python objects are kept as they are."""


class _Dumper(yaml.SafeDumper):
    pass


class _Tagged:
    def __init__(self, tag: str, node: yaml.Node) -> None:
        self.tag, self.node = tag, node


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: _Tagged(node.tag, node))
_Dumper.add_representer(_Tagged, lambda dumper, tagged: tagged.node)


def generated() -> Iterator[tuple[str, str]]:
    """Page -> text, of everything that is written from code and data."""
    yield "reference/commands.md", settings.commands_page()
    for group in settings.groups():
        yield f"reference/groups/{group}.md", settings.group_page(group)
    yield "reference/records.md", written.records_page()
    yield "reference/models.md", written.models_page()
    yield "reference/measured.md", written.measured_page()


def navigation(nav: Sequence[Any], pages: Sequence[str]) -> list[Any]:
    """The hand-written navigation with its patterns (`groups/*.md`) filled in, and the pages it forgot at its end.

    >>> navigation([{"A": ["a.md", "t/*.md"]}, {"More": ["z.md"]}], ["a.md", "t/1.md", "t/2.md", "y.md", "z.md"])
    [{'A': ['a.md', 't/1.md', 't/2.md']}, {'More': ['z.md', 'y.md']}]

    Raises:
        SystemExit: it names a page that does not exist.
    """
    left = list(pages)
    missing = []

    def fill(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            ((title, inner),) = entry.items()
            filled = [part for one in inner for part in fill(one)] if isinstance(inner, list) else fill(inner)[0]
            return [{title: filled}]
        pattern = re.escape(entry).replace(r"\*", "[^/]*")
        found = [page for page in pages if re.fullmatch(pattern, page)]
        if not found and "*" not in entry:
            missing.append(entry)
        for page in found:
            if page in left:
                left.remove(page)
        return found

    filled = [part for entry in nav for part in fill(entry)]
    if missing:
        sys.exit(f"error: mkdocs.yml names pages that do not exist: {', '.join(missing)}")
    ((_, last),) = filled[-1].items()
    last += [page for page in left if not page.startswith(_UNLISTED)]
    return filled


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m docs.builder", description=__doc__)
    parser.add_argument("--output", type=Path, default=BUILD, help="a folder for docs/ and site/ (build)")
    parser.add_argument("--pages", action="store_true", help="write the pages, and make no site")
    options = parser.parse_args(arguments)
    target = options.output / "docs"
    shutil.rmtree(target, ignore_errors=True)
    pages = sources()
    stage(target, pages)
    for source, page in pages.items():
        if source.endswith(".ipynb"):
            write(target / page, notebooks.page(ROOT / source, target / "tutorials" / "images"))
    for page, text in generated():
        write(target / page, text)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)
    there = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.md"))
    config |= {"nav": navigation(config["nav"], there), "docs_dir": "docs", "site_dir": "site"}
    python = next(part["mkdocstrings"] for part in config["plugins"] if "mkdocstrings" in part)["handlers"]["python"]
    python["paths"] = [str(ROOT)]  # wherever the site is made
    python["options"]["extensions"] = [str(ROOT / "docs" / "builder" / "doctests.py")]
    shutil.copytree(ROOT / "docs" / "style", target / "style", dirs_exist_ok=True)
    file = options.output / "mkdocs.yml"
    file.write_text(yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if options.pages:
        return 0
    zensical = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(file)]
    ran = subprocess.run(zensical, cwd=options.output, check=False)
    if ran.returncode == 0:
        without_network(options.output / "site")
        print(f"the site: {options.output / 'site' / 'index.html'}")
    return ran.returncode


def without_network(site: Path) -> None:
    """Let pages load the one script that they would fetch, with which they can be searched from a folder, from beside them."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        ours = "../" * (len(page.relative_to(site).parts) - 1) + "style/offline.js"
        page.write_text(text.replace(_FETCHED, ours), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
