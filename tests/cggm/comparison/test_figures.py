from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from cggm.comparison.figures import difference_chart, rank_chart, sweep_charts
from cggm.comparison.gradients import gradient_chart
from cggm.comparison.statistics import average_ranks
from cggm.display import PALETTE, picture_file
from cggm.reports.tasks import Task
from tests.cggm.comparison.runs import runs
from tests.quantifiers import every

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"
JOINT = [0.70, 0.74, 0.69, 0.73, 0.71]
GAINS = [0.010, 0.013, 0.008, 0.011, 0.009]
UP = [v + g for v, g in zip(JOINT, GAINS, strict=True)]
DOWN = [2 * v - u for v, u in zip(JOINT, UP, strict=True)]


def task(metric="acc", name="mosi"):
    return Task(name, Path("train.py"), ("text", "audio"), (metric,))


def pixels(folder, charts, color):
    file = folder / "chart.png"
    file.write_bytes(picture_file(charts))
    image = imread(file)[..., :3]
    return np.argwhere(np.abs(image - to_rgb(color)).max(-1) < 0.01)


@pytest.mark.parametrize(
    ("metric", "shown", "absent"), [("acc", BLUE, ORANGE), ("mae", ORANGE, BLUE)]
)
def test_color_tells_the_verdict(tmp_path, metric, shown, absent):
    records = [*runs("joint", JOINT, metric), *runs("up", UP, metric), *runs("one", [0.7], metric)]
    chart = difference_chart(records, task(metric))
    assert len(pixels(tmp_path, [chart], shown))
    assert len(pixels(tmp_path, [chart], GRAY))
    assert not len(pixels(tmp_path, [chart], absent))


@pytest.mark.parametrize("metric", ["acc", "mae"])
def test_the_best_method_is_on_top(tmp_path, metric):
    records = [*runs("joint", JOINT, metric), *runs("up", UP, metric), *runs("down", DOWN, metric)]
    chart = difference_chart(records, task(metric))
    assert [i.name for i in chart.intervals] == (["up", "down"], ["down", "up"])[metric == "mae"]
    assert [i.kind for i in chart.intervals] == ["better", "worse"]
    better, worse = (pixels(tmp_path, [chart], color)[:, 0] for color in (BLUE, ORANGE))
    assert better.min() < worse.min() < 0.8 * len(imread(tmp_path / "chart.png"))


def test_difference_is_named_by_the_label_and_its_better_side():
    chart = difference_chart([*runs("joint", JOINT, "hd95"), *runs("a", UP, "hd95")], task("hd95"))
    assert chart.title == "mosi: HD95 minus joint"
    assert chart.label == "difference of HD95 (mm) to joint"
    assert chart.note.startswith("lower is better")


def test_single_modalities_do_not_stretch_the_differences():
    records = [*runs("joint", JOINT), *runs("up", UP), *runs("unimodal_text", [0.1] * 5)]
    assert [i.name for i in difference_chart(records, task()).intervals] == ["up"]


def test_sweep_shows_every_verdict_in_both_panels(tmp_path):
    same = [v + g for v, g in zip(JOINT, [0.01, -0.01, 0.01, -0.01, 0.0], strict=True)]
    records = [
        *runs("joint", JOINT, simulated=True),
        *(r for rho in ("rho=0.5", "lam=0.05") for r in runs(f"cggm:{rho}", UP)),
        *(r for rho in ("rho=2.0", "lam=0.4") for r in runs(f"cggm:{rho}", DOWN)),
        *(r for rho in ("rho=1.0", "lam=0.2") for r in runs(f"cggm:{rho}", same)),
    ]
    charts = sweep_charts(records, task())
    rho, lam = ([i.position for i in chart.intervals] for chart in charts)
    assert (rho, lam) == ([0.5, 1.0, 2.0], [0.05, 0.2, 0.4])
    assert charts[0].limits == charts[1].limits
    assert every("(SIMULATED)" in chart.title for chart in charts)
    for color in (BLUE, ORANGE, GRAY):
        rows, columns = pixels(tmp_path, charts, color).T
        height, width, _ = imread(tmp_path / "chart.png").shape
        columns = columns[rows < 0.75 * height]
        assert columns.min() < 0.5 * width
        assert columns.max() > 0.5 * width + 60


def test_without_a_setting_there_is_no_sweep():
    assert sweep_charts([*runs("joint", JOINT), *runs("cggm", UP)], task()) == []


def test_incomplete_ranks_are_hollow(tmp_path):
    records = [*runs("a", [0.9]), *runs("a", [0.4], task="brats"), *runs("b", [0.8])]
    chosen = {"mosi": ["acc"], "brats": ["acc"]}
    charts = [rank_chart(average_ranks(own, chosen)) for own in (records[:2], records[2:])]
    assert [chart.intervals[0].name for chart in charts] == ["a", "b *"]
    full, hollow = (len(pixels(tmp_path, [chart], PALETTE[2])) for chart in charts)
    assert 0 < hollow < 0.7 * full
    assert not len(pixels(tmp_path, charts, BLUE)), "the color of what is better"


def test_nothing_to_compare_is_still_a_figure(tmp_path):
    for chart in (difference_chart(runs("joint", JOINT), task()), rank_chart({})):
        assert picture_file([chart]).startswith(b"\x89PNG")


def test_gradients_have_the_colors_of_their_modalities_and_repeat(tmp_path):
    rng = np.random.default_rng(0)
    keys = [f"{kind} {m}" for m in ("text", "audio") for kind in ("head", "unimodal")]
    gradients = {key: rng.normal(size=(3, 5)).astype(np.float32) for key in keys}
    chart = gradient_chart("joint", gradients)
    for color in PALETTE[:2]:
        rows = pixels(tmp_path, [chart], color)[:, 0]
        assert rows.min() < 0.8 * len(imread(tmp_path / "chart.png"))  # above the legend
    assert picture_file([gradient_chart("joint", gradients)]) == picture_file([chart])
