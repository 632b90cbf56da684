"""Charts as data, and what becomes of them in pages and in files."""

import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from cggm.display.charts import (
    INK,
    Cloud,
    Interval,
    IntervalChart,
    Line,
    LineChart,
    ScatterChart,
    interval_limits,
    limits,
)
from cggm.display.drawing import tick_text
from cggm.display.pictures import picture_file, svg

X = np.arange(1.0, 1001)
LINE = Line("t1", X, X / 1000, 0)


def elements(picture, kind):
    return list(ElementTree.fromstring(picture).iter(kind))


def texts(picture):
    return [element.text for element in elements(picture, "text")]


def test_lines_are_described_by_their_course():
    chart = LineChart("S", [LINE, Line("t2", X, np.full(1000, np.nan), 1)], "step")
    assert chart.words == "S, by step: t1 from 0.001 to 1.000."
    assert 'role="img" aria-label="S, by step: t1 from 0.001 to 1.000."' in svg(chart)


def test_picture_follows_the_page_and_has_no_identifier_that_another_one_has():
    lines = [LINE, Line("t2", X, 1 - X / 1000, 1, dots=X % 7 / 7), Line("loss", X, X / 500, INK)]
    picture = svg(LineChart("S", lines, "step", level=0.5))
    used = set(re.findall(r"var\(--\w+\)", picture))
    assert used == {"var(--c0)", "var(--c1)", "var(--text)", "var(--grid)", "var(--c7)"}
    assert not re.search(r"#[0-9a-f]{6}", picture), "a color that no dark mode changes"
    assert not re.search(r"\sid=|url\(|href|font", picture)
    assert "step" in texts(picture)


def test_long_lines_and_clouds_are_thinned():
    noisy = Line("a", X, np.sin(X), 0, dots=np.cos(X))
    assert svg(LineChart("S", [noisy], "step")).count("L") < 400
    cloud = Cloud("p", np.linspace(0, 1, 9000), np.linspace(0, 1, 9000))
    assert 1000 < svg(ScatterChart("C", [cloud], "x", "y")).count("h0") <= 1500


def test_text_in_a_picture_is_escaped_and_hostile_names_stay_text():
    name = "<script>alert(1)</script>&$x_1$"
    chart = IntervalChart("A & B", [Interval(name, 1.0, 0.5, 1.5)], "<b>")
    picture = svg(chart)
    assert "<script>" not in picture
    assert [e.text for e in elements(picture, "title")] == [name]
    assert "<b>" in texts(picture)
    assert picture_file([chart]).startswith(b"\x89PNG")


def test_names_are_there_to_be_pointed_at_and_leave_room_for_the_values():
    name = "reconboost:epochs_per_stage=1:rectify_epochs=1"
    intervals = [Interval(name, 1.0, 0.5, 1.5), Interval("joint", 2.0, 2.0, 2.0)]
    picture = svg(IntervalChart("Ranks", intervals, "rank"))
    assert [e.text for e in elements(picture, "title")] == [name, "joint"]
    assert f"{name[:18]}\N{HORIZONTAL ELLIPSIS}" in texts(picture)
    ticks = [e for e in elements(picture, "text") if re.fullmatch(r"[\d.]+", e.text)]
    places = [float(e.attrib["x"]) for e in ticks]
    assert max(places) - min(places) > 150


def test_width_of_a_picture_is_that_of_a_phone():
    for chart in (LineChart("S", [LINE], "step"), ScatterChart("C", [Cloud("p", X, X)], "x", "y")):
        _, _, width, _ = map(float, re.search(r'viewBox="([^"]*)"', svg(chart))[1].split())
        assert width == 360


def test_a_hollow_dot_is_a_ring():
    full, hollow = (
        svg(IntervalChart("R", [Interval("a", 1.0, 1.0, 1.0, hollow=hollow)], "rank"))
        for hollow in (False, True)
    )
    assert full.count("var(--c2)") >= 2  # the bar and the dot
    assert re.search(r"fill:var\(--page\);[^\"]*stroke:var\(--c2\)", hollow)
    assert "var(--page)" not in full


def test_infinite_ends_stay_within_the_axis():
    intervals = [Interval("a", 0.1, 0.0, math.inf, "no difference"), Interval("b", 0.2, 0.1, 0.3)]
    picture = svg(IntervalChart("D", intervals, "difference", zero=True))
    paths = [element.attrib["d"] for element in elements(picture, "path")]
    numbers = [float(x) for path in paths for x in re.findall(r"-?[\d.]+", path)]
    assert max(numbers) <= 362


def test_charts_side_by_side_have_titles_notes_and_one_legend(tmp_path):
    one = LineChart("S", [LINE], "step", note="a note")
    alone, two = (imread(io.BytesIO(picture_file(charts))) for charts in ([one], [one, one]))
    assert two.shape[1] > 1.5 * alone.shape[1]
    assert len(two) == len(alone)


def test_limits_hold_all_lines_but_not_far_dots():
    low, high = limits([np.array([0.0, 1.0])], [np.array([0.5] * 98 + [1e6, 1e6])])
    assert low < 0
    assert 1 < high < 3
    low, high = limits([np.array([2.0, np.nan])])
    assert low < 2 < high
    means = np.linspace(0.2, 1.8, 100)
    assert limits([means]) == pytest.approx((0.12, 1.88))
    low, high = limits([means], [np.where(np.arange(100) % 2, 1e7, -1e7)])
    assert -1.7 < low < 0.2
    assert 1.8 < high < 3.7


def test_limits_hold_zero_and_are_not_stretched_by_one_interval():
    narrow = [Interval("n", m, m - 0.01, m + 0.01, "better") for m in (0.02, 0.03, 0.04)]
    low, high = interval_limits(narrow, zero=True)
    assert low < 0.0
    assert high > 0.05
    assert interval_limits(narrow, zero=False)[0] > 0.0
    wide = Interval("w", 0.03, -5.0, math.inf, "no difference")
    alone = Interval("a", 0.03, math.nan, math.nan)
    low, high = interval_limits([*narrow, wide, alone], zero=True)
    assert -0.1 < low < 0.0
    assert 0.05 < high < 0.15


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.30000000000000004, "0.3"), (-2.0, "\N{MINUS SIGN}2"), (12345.0, "12,345")],
)
def test_ticks_are_short(value, text):
    assert tick_text(value) == text


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-3.0, 17.0), (0.951, 0.953), (1e5, 3e5)])
def test_ticks_are_few_and_different(ends):
    y = np.linspace(*ends, 5)
    found = texts(svg(LineChart("S", [Line("a", np.arange(50.0, 55.0), y, 0)], "step")))
    beside = [text for text in found if text not in {"step", *map(str, range(50, 55))}]
    assert 2 <= len(beside) <= 7
    assert len(set(beside)) == len(beside)


@pytest.mark.parametrize(("kind", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_for_papers_are_the_same_file_each_time_and_keep_their_text(kind, start):
    chart = IntervalChart("Differences", [Interval("a", 0.1, 0.0, 0.2, "not decided")], "acc")
    data = picture_file([chart], head="SIMULATED DATA", kind=kind)
    assert data.startswith(start)
    assert data == picture_file([chart], head="SIMULATED DATA", kind=kind)
    assert kind == "pdf" or b">not decided<" in data


@pytest.mark.parametrize("rows", [1, 40])
def test_the_note_stays_below_the_title_at_any_height(rows):
    intervals = [Interval(f"m{i}", 0.1, 0.0, 0.2, "better") for i in range(rows)]
    chart = IntervalChart("title " * 12, intervals, "acc", "note " * 20)
    picture = picture_file([chart], kind="svg").decode()
    heights = {
        word: [float(y) for y in re.findall(rf'translate\(\S+ ([\d.]+)\)">{word} ', picture)]
        for word in ("title", "note")
    }
    assert [len(found) for found in heights.values()] == [2, 2]
    assert 9 < min(heights["note"]) - max(heights["title"]) < 16
