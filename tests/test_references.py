"""References in code and pages lead to something in this repository."""

import re
import subprocess

import pytest

from tests.conftest import ROOT

TEXT = (".py", ".yaml", ".md", ".toml")
OUTSIDE = re.compile(r"\b(?:METHOD|QUIRKS|PEERS|BENCHMARKS|MODELS|DESIGN)(?:_[A-Z]+)?(?:\.md\b|,? (?:section )?[A-Z]?\d)")
TO_PARITY = re.compile(r"docs/parity\.md, ((?:[A-Z]\d+(?:-[A-Z]\d+)?(?:, )?)+)")
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#([^)\s]+))?\)")


def _files(*endings: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\n") if name.endswith(endings) and (ROOT / name).is_file()]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_no_reference_leads_out_of_the_repository() -> None:
    found = {name: match.group() for name in _files(*TEXT) if (match := OUTSIDE.search(_read(name)))}
    found.pop("tests/test_references.py", None)
    assert found == {}


def test_every_behaviour_that_code_refers_to_has_a_row() -> None:
    rows = set()
    for cell in re.findall(r"^\| ([^|]+) \|", _read("docs/parity.md"), re.MULTILINE):
        for first, last in re.findall(r"([A-Z]\d+)(?:-([A-Z]\d+))?", cell):
            rows |= _span(first, last)
    named = {}
    for name in _files(*TEXT):
        for group in TO_PARITY.findall(_read(name)):
            for first, last in re.findall(r"([A-Z]\d+)(?:-([A-Z]\d+))?", group):
                named |= dict.fromkeys(_span(first, last), name)
    assert len(named) > 10
    assert {identifier: name for identifier, name in named.items() if identifier not in rows} == {}


def _span(first: str, last: str) -> set[str]:
    return {f"{first[0]}{number}" for number in range(int(first[1:]), int((last or first)[1:]) + 1)}


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for name in _files(".md"):
        for target, anchor in LINK.findall(_read(name)):
            path = (ROOT / name).parent / target
            if not path.exists():
                broken.append(f"{name}: {target}")
            elif anchor and path.suffix == ".md" and anchor not in _anchors(path.read_text(encoding="utf-8")):
                broken.append(f"{name}: {target}#{anchor}")
    assert broken == []


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_modules_named_in_pages_exist() -> None:
    missing = []
    for name in _files(".md"):
        for path in re.findall(r"`((?:goca|tests|conf|benchmarks|experiments|docs)/[\w./-]+\.(?:py|yaml|md))`", _read(name)):
            yours = re.search(r"/(?:my_|mine|local/)", path)  # what a reader is to write
            if not yours and not (ROOT / path).exists():
                missing.append(f"{name}: {path}")
    assert missing == []
