"""Tables of text: aligned for a terminal, as Markdown, as CSV and as LaTeX; numbers in a text."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cggm.errors import in_one_line

DASH = "\N{EN DASH}"
Mark = Literal["", "best", "second"]
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
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the latter four are fullwidth
# A number, and its interval or deviation where it has one.
_NUMBER = re.compile(r"-?(\d[\d.]*(e[+-]\d+)?|∞|inf|nan)([ ±,()\[\]\d.+∞-]|n=)*$")
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
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A table to be shown, the same in every format.

    Args:
        title: One sentence without its period.
        columns: Keys of its columns, the heads of a CSV file, which programs read.
        rows: As many cells each as there are columns.
        notes: Sentences below it.
        headings: What readers see in place of the keys; these where empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[str, ...]:
        """What readers see above the columns."""
        return self.headings or self.columns


def number(value: float | None, digits: int = 3) -> str:
    """A number in a text: a dash for none, a true minus sign, no sign before zero.

    Args:
        value: A number; there is none where it is NaN or ``None``.
        digits: Behind the decimal point.
    """
    if value is None or math.isnan(value):
        return DASH
    text = f"{value:.{digits}f}".replace("inf", "∞")
    text = text.removeprefix("-") if float(f"{value:.{digits}f}") == 0 else text
    return text.replace("-", "\N{MINUS SIGN}")


def aligned(rows: Iterable[Sequence[str]], *, texts: int = 1, gap: int = 2) -> list[str]:
    """Lines of a table for a terminal, without blanks at their ends.

    Args:
        rows: Cells of each line, the heads first; of equal number.
        texts: How many columns from the left hold texts; the others hold numbers and end alike.
        gap: Blanks between two columns.
    """
    table = [[*row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        (" " * gap)
        .join(
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        .rstrip()
        for row in table
    ]


def to_markdown(table: Table) -> str:
    """Pipe table with its title above and its notes below; second best in ``<ins>``."""
    marks = {"": "{}", "best": "**{}**", "second": "<ins>{}</ins>"}
    rows = [[marks[c.mark].format(_piped(c.text)) for c in row] for row in table.rows]
    grid = [[_piped(name) for name in table.heads], *rows]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [_piped_row(row, widths) for row in grid]
    lines.insert(1, _piped_row(["-" * width for width in widths], widths))
    notes = [f"\n{' '.join(table.notes)}"] if table.notes else []
    return "\n".join([f"**{table.title}**\n", *lines, *notes]) + "\n"


def to_csv(table: Table) -> str:
    """The title as a line that begins with ``#``, headings and rows; without marks and notes."""
    # The sign of a difference is for readers; a spreadsheet takes a plus for a formula.
    rows = [[_without_plus(cell.text) for cell in row] for row in table.rows]
    rows = [[*table.columns], *rows]
    return f"# {in_one_line(table.title)}\n{csv_text(rows)}"


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Lines of a CSV file in which no cell is a formula to a spreadsheet.

    A text that begins with ``=``, ``+``, ``-`` or ``@``, as the name of a case or of a folder may,
    gets an apostrophe before it; negative numbers stay. What is not printed, such as a line break
    in a name, is written as an escape.

    Args:
        rows: Cells of each line.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def _without_plus(text: str) -> str:
    return text.removeprefix("+") if _NUMBER.match(text.removeprefix("+")) else text


def _inert(text: str) -> str:
    text = in_one_line(text)  # a carriage return is not quoted, and begins a line to a spreadsheet
    is_formula = text.lstrip().startswith(_FORMULA) and not _NUMBER.match(text)
    return f"'{text}" if is_formula else text


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
        _latex_row([_escaped(name) for name in table.heads]),
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
