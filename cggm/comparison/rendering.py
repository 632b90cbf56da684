"""Tables as Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

DASH = "\u2013"
_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    DASH: "--",
}
# The minus of a number, not the hyphen of a word.
_MINUS = re.compile(r"(?<![\w-])-(?=\d|\$\\infty)")


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Args:
        text: What it says; an en dash where there is nothing to say.
        mark: Set in bold as the best of its column, or underlined as the second.
    """

    text: str = DASH
    mark: Literal["", "best", "second"] = ""


@dataclass(frozen=True)
class Table:
    """A table to be shown, the same in every format.

    Args:
        title: One sentence without its period.
        columns: Headings.
        rows: As many cells each as there are columns.
        notes: Sentences below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def to_markdown(table: Table) -> str:
    """Pipe table with its title above and its notes below; second best in ``<ins>``."""
    marks = {"": "{}", "best": "**{}**", "second": "<ins>{}</ins>"}
    rows = [[marks[c.mark].format(_piped(c.text)) for c in row] for row in table.rows]
    grid = [[_piped(name) for name in table.columns], *rows]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [_piped_row(row, widths) for row in grid]
    lines.insert(1, _piped_row(["-" * width for width in widths], widths))
    notes = [f"\n{' '.join(table.notes)}"] if table.notes else []
    return "\n".join([f"**{table.title}**\n", *lines, *notes]) + "\n"


def to_csv(table: Table) -> str:
    """The title as a line that begins with ``#``, headings and rows; without marks and notes."""
    text = io.StringIO()
    text.write(f"# {table.title}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([cell.text for cell in row] for row in table.rows)
    return text.getvalue()


def to_latex(table: Table) -> str:
    r"""``table`` environment for ``\usepackage{booktabs}``; the notes stand under the rules."""
    marks = {"": "{}", "best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
    rows = [[marks[c.mark].format(_escaped(c.text)) for c in row] for row in table.rows]
    body = [*map(_latex_row, rows)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.title)}}}",
        rf"\begin{{tabular}}{{l{'c' * (len(table.columns) - 1)}}}",
        r"\toprule",
        _latex_row([_escaped(name) for name in table.columns]),
        *(r"\midrule", *body, r"\bottomrule"),
        r"\end{tabular}",
        *(rf"\par\smallskip\footnotesize {_escaped(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


RENDERERS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
"""By the suffix of their files."""


def _piped(text: str) -> str:
    return text.replace("|", r"\|")


def _piped_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"


def _escaped(text: str) -> str:
    return _MINUS.sub("$-$", "".join(_LATEX.get(sign, sign) for sign in text))


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
