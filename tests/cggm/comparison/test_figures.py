import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from cggm.comparison.figures import (
    SweepPoint,
    frame_of,
    plot_differences,
    plot_gradients,
    plot_ranks,
    plot_sweep,
)
from cggm.comparison.statistics import Difference, average_ranks
from cggm.runs.watch.curves import modality_colors
from tests.cggm.comparison.runs import runs

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"
JOINT = [0.70, 0.74, 0.69, 0.73, 0.71]
GAINS = [0.010, 0.013, 0.008, 0.011, 0.009]
UP = [v + g for v, g in zip(JOINT, GAINS, strict=True)]


def pixels(png, color):
    image = imread(png)[..., :3]
    return np.argwhere(np.abs(image - to_rgb(color)).max(-1) < 0.01)


@pytest.mark.parametrize(
    ("metric", "shown", "absent"), [("acc", BLUE, ORANGE), ("mae", ORANGE, BLUE)]
)
def test_color_tells_the_verdict(tmp_path, metric, shown, absent):
    records = [*runs("joint", JOINT, metric), *runs("up", UP, metric), *runs("one", [0.7], metric)]
    plot_differences(records, "mosi", metric, tmp_path / "d.png")
    assert len(pixels(tmp_path / "d.png", shown))
    assert len(pixels(tmp_path / "d.png", GRAY))
    assert not len(pixels(tmp_path / "d.png", absent))


@pytest.mark.parametrize("metric", ["acc", "mae"])
def test_the_best_method_is_on_top(tmp_path, metric):
    down = [2 * v - u for v, u in zip(JOINT, UP, strict=True)]
    records = [*runs("joint", JOINT, metric), *runs("up", UP, metric), *runs("down", down, metric)]
    plot_differences(records, "mosi", metric, tmp_path / "d.png")
    height = len(imread(tmp_path / "d.png"))
    better, worse = (pixels(tmp_path / "d.png", color)[:, 0] for color in (BLUE, ORANGE))
    assert better.min() < worse.min() < 0.8 * height


def test_nothing_to_compare_is_still_a_figure(tmp_path):
    plot_differences(runs("joint", JOINT), "mosi", "acc", tmp_path / "d.png")
    plot_ranks({}, tmp_path / "r.png")
    plot_sweep([], tmp_path / "s.png", metric="acc")
    assert [*tmp_path.glob("*")] == [*tmp_path.glob("?.png")]


def test_frame_holds_zero_and_is_not_stretched_by_one_interval():
    narrow = [Difference(6, m, m - 0.01, m + 0.01, "better") for m in (0.02, 0.03, 0.04)]
    low, high = frame_of(narrow)
    assert low < 0.0
    assert high > 0.05
    wide = Difference(4, 0.03, -5.0, math.inf, "no difference")
    alone = Difference(1, 0.03, math.nan, math.nan, "no difference")
    low, high = frame_of([*narrow, wide, alone])
    assert -0.1 < low < 0.0
    assert 0.05 < high < 0.15


def test_sweep_shows_every_verdict_in_both_panels(tmp_path):
    differences = [
        Difference(6, 0.1, 0.05, 0.12, "better"),
        Difference(6, -0.1, -0.12, -0.05, "worse"),
        Difference(6, 0.0, -0.1, math.inf, "no difference"),
    ]
    points = [
        SweepPoint(setting, value, d)
        for setting in ("rho", "lambda")
        for value, d in enumerate(differences)
    ]
    plot_sweep(points, tmp_path / "s.png", metric="acc", simulated=True)
    height, width, _ = imread(tmp_path / "s.png").shape
    for color in (BLUE, ORANGE, GRAY):
        rows, columns = pixels(tmp_path / "s.png", color).T
        columns = columns[rows < 0.75 * height]
        assert columns.min() < 0.5 * width
        assert columns.max() > 0.5 * width + 60


def test_incomplete_ranks_are_hollow(tmp_path):
    records = [*runs("a", [0.9]), *runs("a", [0.4], task="brats"), *runs("b", [0.8])]
    chosen = {"mosi": ["acc"], "brats": ["acc"]}
    plot_ranks(average_ranks(records[:2], chosen), tmp_path / "full.png")
    plot_ranks(average_ranks(records[2:], chosen), tmp_path / "hollow.png")
    full, hollow = (len(pixels(tmp_path / f"{n}.png", BLUE)) for n in ("full", "hollow"))
    assert 0 < hollow < 0.7 * full


def test_gradients_have_the_colors_of_their_modalities_and_repeat(tmp_path):
    rng = np.random.default_rng(0)
    labels = [(m, kind) for m in ("text", "audio") for kind in ("head", "unimodal")] * 3
    vectors = {name: rng.normal(size=(12, 5)).astype(np.float32) for name in ("joint",)}
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file in files:
        plot_gradients(vectors, dict.fromkeys(vectors, labels), file, 0)
    above_legend = 0.8 * len(imread(files[0]))
    for color in modality_colors(["text", "audio"]).values():
        assert pixels(files[0], color)[:, 0].min() < above_legend
    assert files[0].read_bytes() == files[1].read_bytes()
