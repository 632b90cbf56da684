import csv
import io

import pytest

from cggm.display.tables import (
    DASH,
    Cell,
    Table,
    aligned,
    csv_text,
    number,
    to_csv,
    to_latex,
    to_markdown,
)
from tests.quantifiers import none


def test_latex_of_signs_and_marks():
    cells = (Cell("a_b\\{~^}"), Cell("-0.1 [-∞, 50 %] ± 1", "best"), Cell("x-2", "second"))
    latex = to_latex(Table("T & #1", ("m", "<", ">"), (cells,), ("100 $",)))
    assert r"a\_b\textbackslash{}\{\textasciitilde{}\textasciicircum{}\}" in latex
    assert r"\textbf{$-$0.1 [$-$$\infty$, 50 \%] $\pm$ 1}" in latex
    assert r"\underline{x-2}" in latex
    assert r"\caption{T \& \#1}" in latex
    assert "m & $<$ & $>$" in latex


def test_markdown_keeps_a_bar_inside_its_cell():
    assert r"| a\|b |" in to_markdown(Table("T", ("m",), ((Cell("a|b"),),)))


def test_heads_are_for_readers_and_keys_for_programs():
    table = Table("T", ("m", "acc"), ((Cell("a"), Cell("0.5")),), (), ("m", "accuracy"))
    assert "| accuracy |" in to_markdown(table)
    assert "m & accuracy" in to_latex(table)
    assert to_csv(table).splitlines()[1] == "m,acc"


FORMULAS = [
    "=1+1",
    "+2",
    "@SUM(1)",
    "-2+3*cmd|' /C calc'!A0",
    " =1",
    "\N{FULLWIDTH EQUALS SIGN}1",
    "\N{FULLWIDTH PLUS SIGN}1",
    "+1 (a)",
]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_of_a_csv_file_is_a_formula(name):
    rows = list(csv.reader(io.StringIO(csv_text([["case", name], [name, "x"]]), newline="")))
    assert rows == [["case", f"'{name}"], [f"'{name}", "x"]]


@pytest.mark.parametrize("sign", ["\t", "\r", "\n", "\0", "\ufeff", "\u200b", "\xa0"])
def test_no_sign_that_is_not_printed_hides_a_formula(sign):
    table = Table(f"of a{sign}=1", ("case", "x"), ((Cell("a"), Cell(f"{sign}=1")),))
    text = to_csv(table)
    assert text.count("\n") == 3
    assert sign not in text.replace("\n", "", 3)
    assert none(line.startswith("=") for line in text.splitlines())
    assert csv_text([["a", f"{sign}=1"]]) == f"a,{ascii(sign)[1:-1]}=1\n"


@pytest.mark.parametrize(
    "text", ["-0.5", "-1e-05", "-0.1 [-∞, 0.2]", "0.5 ± 0.1 (n=2)", DASH, "a-b", ""]
)
def test_numbers_and_names_are_left_alone(text):
    assert list(csv.reader(io.StringIO(csv_text([["a", text]])))) == [["a", text]]


def test_a_difference_loses_its_plus_in_csv_alone():
    table = Table("T", ("m", "d"), ((Cell("+x"), Cell("+0.0400 [+0.0300, +0.0500]")),))
    (row,) = list(csv.reader(io.StringIO(to_csv(table))))[2:]
    assert row == ["'+x", "0.0400 [+0.0300, +0.0500]"]
    assert "+0.0400" in to_markdown(table)


def test_columns_of_text_begin_and_those_of_numbers_end_alike():
    lines = aligned([["case", "Dice"], ["a", "0.5"], ["longer", "12.25"]])
    assert lines == ["case     Dice", "a         0.5", "longer  12.25"]
    assert aligned([["a", "b"], ["c", "long"]], texts=2) == ["a  b", "c  long"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, DASH),
        (float("nan"), DASH),
        (-0.0001, "0.000"),
        (-1.5, "\N{MINUS SIGN}1.500"),
        (float("inf"), "∞"),
    ],
)
def test_numbers_in_text(value, text):
    assert number(value) == text
