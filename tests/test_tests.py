"""The tests themselves: seeded, independent of each other, and marked by what they need."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import LONG

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SEEDED = torch.rand(3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("draws", [1, 2])
def test_every_test_begins_with_the_same_random_numbers(draws: int) -> None:
    assert torch.equal(torch.rand(3), SEEDED)
    torch.rand(draws)


@settings(max_examples=3)
@given(st.integers(1, 3))
def test_so_does_every_example_of_a_property(draws: int) -> None:
    assert torch.equal(torch.rand(3), SEEDED)
    torch.rand(draws)


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a file imports from the tests."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_what_tests_share_lies_in_helpers_and_fixtures_and_is_public(path: Path) -> None:
    for module, name in _imports(path):
        assert not module.rpartition(".")[2].startswith("test_"), f"move {name} to tests/helpers"
        assert not name.startswith("_"), f"{module}.{name} is private"


def test_benchmarks_write_to_outputs_and_never_beside_themselves() -> None:
    """A file of the repository that a benchmark changes would make every later run say that its commit is dirty."""
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert "__file__" not in path.read_text(encoding="utf-8"), path


def test_benchmarks_are_no_library_of_the_tests() -> None:
    for path in TESTS.rglob("*.py"):
        assert "from benchmarks" not in path.read_text(encoding="utf-8").replace('"from benchmarks"', ""), path


def test_what_is_said_to_take_long_exists() -> None:
    """A file that was renamed would fall back among the fast ones."""
    assert [name for name in LONG if not (TESTS / name).exists()] == []
