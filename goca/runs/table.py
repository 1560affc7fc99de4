"""A table as plain data, and how it is written: CSV, Markdown, and LaTeX for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Cell = str | int | float | None

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}"},
    **{">": "\\textgreater{}", "|": "\\textbar{}", "\n": " ", "\r": " "},
}


@dataclass(frozen=True)
class Table:
    """Rows under named columns; None is a cell without a value.

    Args:
        columns, rows: names, and cells in their order.
        parts: heading and number of rows of what must not be ranked together, in the order of the rows; none where all of the
            rows belong together.
        better: columns in which a value is better -> which; the best of each part is marked.
        across: the best of each row is marked instead, among these columns.
        digits: behind the point, where numbers are written to be read; CSV keeps all of them.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    parts: tuple[tuple[str, int], ...] = ()
    better: Mapping[str, Literal["higher", "lower"]] = field(default_factory=dict)
    digits: int = 2
    across: bool = False

    def select(self, columns: Sequence[str]) -> Table:
        """The same rows with these columns alone."""
        places = [self.columns.index(name) for name in columns]
        rows = tuple(tuple(row[place] for place in places) for row in self.rows)
        better = {name: direction for name, direction in self.better.items() if name in columns}
        return replace(self, columns=tuple(columns), rows=rows, better=better)

    def sections(self) -> Iterator[tuple[str | None, tuple[tuple[Cell, ...], ...]]]:
        """Heading and rows of each part; one without a heading where there are no parts."""
        first = 0
        for heading, count in self.parts or ((None, len(self.rows)),):
            yield heading, self.rows[first : first + count]
            first += count

    def csv(self) -> str:
        """Comma-separated, with a header; parts are told by a first column `group`. Text that a spreadsheet would run as a
        formula is quoted by an apostrophe."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*(["group"] if self.parts else []), *self.columns])
        for heading, rows in self.sections():
            group = [_inert(heading)] if self.parts else []
            writer.writerows([*group, *map(_inert, row)] for row in rows)
        return text.getvalue()

    def markdown(self) -> str:
        """A pipe table: numbers to the right, parts under their headings, the best in bold.

        >>> print(Table(("run", "mIoU"), (("a|b", 1.0), ("c", None), ("d", 2.0)), better={"mIoU": "higher"}).markdown())
        | run | mIoU |
        | :-- | --: |
        | a\\|b | 1.00 |
        | c | - |
        | d | **2.00** |
        """
        lines = [self.columns, tuple("--:" if right else ":--" for right in self._numeric())]
        for heading, rows in self.sections():
            if heading is not None:
                lines.append((f"*{markdown_text(heading)}*", *[""] * (len(self.columns) - 1)))
            lines += self.written(rows, markdown_text, "**{}**".format)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def latex(self) -> str:
        """A `tabular` in the manner of the package booktabs, parts between rules under their headings, the best in bold.

        >>> print(Table(("run", "mIoU"), (("a_b", 1.0), ("c", 2.0)), (("all & sundry", 2),), {"mIoU": "higher"}, 1).latex())
        % needs \\usepackage{booktabs}
        \\begin{tabular}{lr}
        \\toprule
        run & mIoU \\\\
        \\midrule
        \\multicolumn{2}{l}{\\textit{all \\& sundry}} \\\\
        a\\_b & 1.0 \\\\
        c & \\textbf{2.0} \\\\
        \\bottomrule
        \\end{tabular}
        """
        lines = [
            "% needs \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in self._numeric())}}}",
            "\\toprule",
            " & ".join(map(_latex_text, self.columns)) + " \\\\",
        ]
        for heading, rows in self.sections():
            lines.append("\\midrule")
            if heading is not None:
                lines.append(f"\\multicolumn{{{len(self.columns)}}}{{l}}{{\\textit{{{_latex_text(heading)}}}}} \\\\")
            lines += [" & ".join(row) + " \\\\" for row in self.written(rows, _latex_text, "\\textbf{{{}}}".format)]
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])

    def _numeric(self) -> list[bool]:
        return [all(isinstance(row[i], (int, float, type(None))) for row in self.rows) for i in range(len(self.columns))]

    def written(
        self, rows: tuple[tuple[Cell, ...], ...], text: Callable[[str], str], bold: Callable[[str], str]
    ) -> list[tuple[str, ...]]:
        """The cells of one part as text: `text` quotes what is not a number, `bold` marks the best."""

        def cell(value: Cell) -> str:
            if value is None:
                return "-"
            return f"{value:.{self.digits}f}" if isinstance(value, float) else text(str(value))

        written = [[cell(value) for value in row] for row in rows]
        for cells, direction in self._rivals(len(rows)):
            values = [value for i, j in cells if isinstance(value := rows[i][j], (int, float))]
            if len(values) > 1:  # alone it is neither the best nor the worst
                best = cell(max(values) if direction == "higher" else min(values))
                for i, j in cells:
                    written[i][j] = bold(best) if written[i][j] == best else written[i][j]
        return [tuple(row) for row in written]

    def _rivals(self, rows: int) -> Iterator[tuple[list[tuple[int, int]], str]]:
        """Places of cells of which the best is marked, and what is better."""
        places = {self.columns.index(name): direction for name, direction in self.better.items()}
        if not self.across:
            yield from (([(i, j) for i in range(rows)], direction) for j, direction in places.items())
        elif places:
            yield from (([(i, j) for j in places], next(iter(places.values()))) for i in range(rows))


def markdown_text(text: str) -> str:
    """Text of a run on one line of Markdown, where it is neither HTML nor the end of a cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _inert(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
