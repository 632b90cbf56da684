import json
import math
import random
import time

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from cggm.display import PALETTE
from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm.runs.loop.seeds import seed_everything
from cggm.runs.metrics import Metric, register_metrics
from cggm.runs.watch.curves import (
    CurveRefresh,
    plot_curves,
    read_charts,
    running_mean,
)
from tests.quantifiers import every, none

register_metrics(
    Metric("dice_mean", "mean Dice", "higher"),
    Metric("dice_WT", "Dice WT", "higher"),
    Metric("dice_ET", "Dice ET", "higher"),
    Metric("hd95_WT", "HD95 WT", "lower", digits=2, unit="mm"),
)
ALL = ["score", "term", "cosine", "gradient_norm", "loss", "validation", "curves"]


def write_logs(folder, modalities, lines, *, balanced=True, metrics=True):
    def values(factor):
        return {name: factor * (i + 1) for i, name in enumerate(modalities)} if balanced else None

    with (folder / "balance.jsonl").open("w") as file:
        for i in range(1, lines + 1):
            wave = math.sin(i / lines)
            record = {"iteration": i, "epoch": 1, "loss": wave}
            for key in ("score", "raw_term", "term", "cosine", "gradient_norm"):
                first = key == "raw_term" and i == 1
                record[key] = dict.fromkeys(modalities) if first else values(wave)
            file.write(json.dumps(record) + "\n")
    if metrics:
        with (folder / "metrics.jsonl").open("w") as file:
            for epoch in (1, 2):
                record = {"epoch": epoch, "iteration": 9 * epoch, "train_loss": 1.0 / epoch}
                record |= {"val_loss": 2.0, "val_dice_WT": 0.4 * epoch, "val_dice_ET": 0.3 * epoch}
                file.write(json.dumps(record | {"val_hd95_WT": 30.0}) + "\n")
    return folder


def shows(png, color):
    pixels = imread(png)[..., :3]
    return bool((np.abs(pixels - to_rgb(color)).max(-1) < 0.01).any())


@pytest.mark.parametrize(
    ("modalities", "lines"),
    [(["text", "image"], 1), (["flair", "t1ce", "t1", "t2"], 300), (list("abcdef"), 3000)],
)
def test_every_modality_has_its_color_in_every_file(tmp_path, modalities, lines):
    files = plot_curves(write_logs(tmp_path, modalities, lines))
    assert files == [tmp_path / "curves" / f"{name}.png" for name in ALL]
    colors = PALETTE[: len(modalities)]
    for file in (files[0], files[1], files[2], files[3], files[-1]):
        assert every(shows(file, color) for color in colors), file
    assert none(shows(files[4], color) for color in colors)
    assert sorted(tmp_path.joinpath("curves").iterdir()) == sorted(files)


def test_what_was_not_recorded_is_left_out(tmp_path):
    files = plot_curves(write_logs(tmp_path, ["flair"], 5, balanced=False))
    assert [file.stem for file in files] == ["loss", "validation", "curves"]


def test_loss_falls_back_on_the_epochs(tmp_path):
    write_logs(tmp_path, ["flair"], 5)
    (tmp_path / "balance.jsonl").unlink()
    (line,) = read_charts(RunFolder(tmp_path))["loss"].lines
    assert line.x.tolist() == [9, 18]
    assert line.y.tolist() == [1.0, 0.5]


def test_validation_shows_one_kind_of_metric_by_its_labels(tmp_path):
    write_logs(tmp_path, ["flair"], 5)
    chart = read_charts(RunFolder(tmp_path))["validation"]
    assert chart.title == "Validation: Dice"
    found = {line.name: line.y.tolist() for line in chart.lines}
    assert found == {"Dice WT": [0.4, 0.8], "Dice ET": [0.3, 0.6]}


def test_a_metric_that_nobody_knows_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "iteration": 1, "val_odd": 1.0}\n')
    with pytest.raises(UserError, match="Unknown metric 'odd'"):
        plot_curves(tmp_path)


def test_a_run_without_logs_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing was logged"):
        plot_curves(tmp_path)
    assert not (tmp_path / "curves").exists()


def test_global_plotting_state_is_left_alone(tmp_path):
    before = dict(mpl.rcParams)
    plot_curves(write_logs(tmp_path, ["a"], 3, metrics=False))
    assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == []


def test_running_mean_by_hand():
    values = np.array([1.0, 2.0, np.nan, 6.0, 4.0])
    assert running_mean(values, 3) == pytest.approx([1.5, 1.5, np.nan, 5.0, 5.0], nan_ok=True)
    assert running_mean(values, 0) == pytest.approx(values, nan_ok=True)
    assert running_mean(values[:1], 3) == pytest.approx([1.0])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.integers(0, 60))
def test_running_mean_stays_within_the_values(values, window):
    mean = running_mean(np.array(values), window)
    assert mean.shape == (len(values),)
    assert mean.min() >= min(values) - 1e-6
    assert mean.max() <= max(values) + 1e-6


def test_sparse_values_are_joined(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for epoch in range(1, 51):
            score = {"val_dice_mean": 0.5} if epoch % 25 == 0 else {}
            file.write(json.dumps({"epoch": epoch, "iteration": epoch} | score) + "\n")
    plot_curves(tmp_path)
    dark = imread(tmp_path / "curves" / "validation.png")[..., :3].max(-1) < 0.3
    assert dark.sum(1).max() > 0.4 * dark.shape[1]


def test_curves_are_refreshed_at_a_small_share_of_the_time(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    refresh = CurveRefresh(RunFolder(write_logs(tmp_path, ["flair"], 5)))
    file = tmp_path / "curves" / "curves.png"
    drawings = []
    savefig = Figure.savefig

    def slowly(figure, *arguments, **options):  # takes 4 seconds
        now[0] += 4
        drawings.append(now[0])
        return savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", slowly)
    for at in (1019, 1021, 1024, 1104, 1106):
        now[0] = at
        refresh.draw_if_cheap()
    # not before 20 seconds; then not before 80 seconds after the end of a drawing of 4 seconds
    assert drawings == [1025, 1110]
    assert [path.name for path in file.parent.iterdir()] == ["curves.png"]
    assert shows(file, PALETTE[0])


def test_drawing_draws_no_random_number(tmp_path):
    write_logs(tmp_path, ["flair"], 5)
    seed_everything(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seed_everything(3)
    plot_curves(tmp_path)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_curves_of_simulated_data_say_so(tmp_path):
    write_logs(tmp_path, ["flair"], 5)
    plain, said = (plot_curves(tmp_path, simulated=simulated) for simulated in (False, True))
    assert plain == said
    assert every(Image.open(file).text["Description"] == "SIMULATED DATA" for file in said)
    CurveRefresh(RunFolder(tmp_path), longest_share=math.inf, simulated=True).draw_if_cheap()
    assert shows(said[-1], "#7a4a00")
    plot_curves(tmp_path)
    assert none("Description" in Image.open(file).text for file in said)
    assert not shows(said[-1], "#7a4a00")
