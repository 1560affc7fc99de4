"""Tables as CSV, Markdown and LaTeX: nothing is lost or read as a command, and the best of what may be ranked is marked."""

import csv
import io
import re

import pytest

from goca.runs.table import Table

NASTY = ["a & b", "50 % of #1", "$x_1^2$ {~}", "back\\slash", "<b>|</b>", "two\nlines", "=1+1"]


def latex_rows(text: str) -> list[list[str]]:
    """Cells between \\toprule and \\bottomrule, split as TeX does: at & and \\\\ that no backslash precedes."""
    body = text.split("\\toprule\n")[1].split("\n\\bottomrule")[0]
    lines = [line for line in body.split("\n") if line != "\\midrule"]
    assert all(line.endswith(" \\\\") for line in lines)
    return [re.split(r"(?<!\\)&", line.removesuffix(" \\\\")) for line in lines]


def unescaped(cell: str) -> str:
    """What TeX would set, by the rules of its manual and not by the table's own."""
    words = {"backslash": "\\", "asciitilde": "~", "asciicircum": "^", "less": "<", "greater": ">", "bar": "|"}
    cell = re.sub(r"\\text(\w+)\{\}", lambda found: words[found[1]], cell.strip())
    return re.sub(r"(?<!\\)\\([&%$#_{}])", r"\1", cell)


def test_latex_sets_the_text_of_a_run_as_it_is() -> None:
    table = Table(("name", "mIoU"), tuple((name, 1.5) for name in NASTY))
    header, *rows = latex_rows(table.latex())
    assert [cell.strip() for cell in header] == ["name", "mIoU"]
    assert [len(row) for row in rows] == [2] * len(NASTY)
    assert [unescaped(row[0]) for row in rows] == [name.replace("\n", " ") for name in NASTY]
    assert table.latex().count("{") == table.latex().count("}")


def test_csv_comes_back_as_it_went_and_a_formula_stays_text() -> None:
    table = Table(("name", "mIoU"), tuple((name, 1.23456) for name in NASTY), (("first, part", 3), ("=second", 4)))
    header, *rows = csv.reader(io.StringIO(table.csv()))
    assert header == ["group", "name", "mIoU"]
    assert [row[0] for row in rows] == ["first, part"] * 3 + ["'=second"] * 4
    assert [row[1] for row in rows] == [*NASTY[:-1], "'=1+1"]
    assert {row[2] for row in rows} == {"1.23456"}


def test_markdown_keeps_text_out_of_its_grammar() -> None:
    lines = Table(("name", "mIoU"), tuple((name, 1.5) for name in NASTY)).markdown().splitlines()
    assert [len(re.split(r"(?<!\\)\|", line)) for line in lines] == [4] * (2 + len(NASTY))
    assert not any("<b>" in line for line in lines)


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_the_best_is_marked_within_each_part_alone(form: str) -> None:
    rows = (("a", 1.0, 9.0), ("b", 2.004, 8.0), ("c", 2.0, None), ("d", 50.0, 1.0), ("e", None, None), ("f", 40.0, None))
    table = Table(("run", "mIoU", "s"), rows, (("ours", 3), ("theirs", 3)), {"mIoU": "higher", "s": "lower"})
    marked = re.findall(r"\*\*([\d.]+)\*\*|\\textbf\{([\d.]+)\}", getattr(table, form)())
    # Equal as they are written: both are marked. One value alone in its part is not.
    assert ["".join(pair) for pair in marked] == ["2.00", "8.00", "2.00", "50.00"]


def test_the_best_of_a_row_is_marked_where_rows_are_compared() -> None:
    rows = (("cat", 1.0, 2.0), ("dog", 3.0, None), ("sky", 5.0, 4.0))
    table = Table(("class", "a", "b"), rows, (), {"a": "higher", "b": "higher"}, across=True)
    assert re.findall(r"\*\*([\d.]+)\*\*", table.markdown()) == ["2.00", "5.00"]


def test_columns_can_be_chosen() -> None:
    table = Table(("a", "b", "c"), ((1, 2.0, "x"), (3, 4.0, "y")), (("p", 2),), {"b": "higher", "a": "lower"})
    assert table.select(("c", "b")) == Table(("c", "b"), (("x", 2.0), ("y", 4.0)), (("p", 2),), {"b": "higher"})
