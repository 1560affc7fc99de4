"""What docs/tables.md reads from a run folder, as it stands there."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goca.paths import CONF
from tests.helpers import fake_runs
from tests.helpers.fake_runs import record

PAGE = (CONF.parent / "docs" / "tables.md").read_text(encoding="utf-8")
NOISE = 0.2
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.S | re.M)


def values(code: str, names: dict[str, Any]) -> Iterator[Any]:
    """Run a snippet line by line; what its expressions are worth."""
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            yield eval(compile(ast.Expression(statement.value), "docs/tables.md", "eval"), names)
        else:
            exec(compile(ast.Module([statement], []), "docs/tables.md", "exec"), names)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of six images where the page says it is, seen from the current folder."""
    (place,) = set(re.findall(r'"(outputs/[^"]*?)(?:/records\.jsonl)?"', "".join(SNIPPETS)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fake_runs, "record", lambda image, *more: replace(record(image, *more), index=image))
    return fake_runs.run_folder(Path(place), NOISE, images=6)


def test_records_are_read_as_a_table(folder: Path) -> None:
    pytest.importorskip("pandas")
    (code,) = (code for code in SNIPPETS if "import pandas" in code)
    names: dict[str, Any] = {}
    failed, _ = values(code, names)
    assert len(names["records"]) == 6
    assert failed.empty


def test_the_miou_of_a_subset_follows_from_the_records(folder: Path) -> None:
    (code,) = (code for code in SNIPPETS if "import RunFolder" in code)
    names: dict[str, Any] = {}
    (found,) = values(code, names)
    assert [record.index for record in names["some"]] == [0, 2, 4]
    # By hand, from the labels of these images.
    pairs = [fake_runs.labels(image, NOISE) for image in (0, 2, 4)]
    truth, predicted = np.stack([own for own, _ in pairs]), np.stack([made.numpy() for _, made in pairs], 1)
    for made, miou in zip(predicted, found, strict=True):
        both = [((made == i) & (truth == i), (made == i) | (truth == i)) for i in range(len(fake_runs.CLASSES))]
        assert miou == pytest.approx(np.mean([common.sum() / union.sum() for common, union in both]))
