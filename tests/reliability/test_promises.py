"""docs/reliability.md names a test for every promise; each of them exists."""

import ast
import re

from tests.conftest import ROOT

ROW = re.compile(r"^\| (?P<promise>[^|]+) \| (?P<tests>`[^|]+`) \|$", re.MULTILINE)


def test_every_promise_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = page.partition("## Promises")[2].partition("\n## ")[0]
    rows = ROW.findall(section)
    assert len(rows) == section.count("\n| ") - 1  # every line of the table but its head
    assert len(rows) > 20
    for promise, tests in rows:
        for name in re.findall(r"`([^`]+)`", tests):
            path, _, function = name.partition("::")
            file = ROOT / (path if "/" in path else f"tests/reliability/{path}")
            functions = {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}
            assert function in functions, f"{promise}: there is no {name}"
