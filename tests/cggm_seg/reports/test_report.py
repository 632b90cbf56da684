"""What the report of a BraTS run shows, read from its HTML."""

import base64
import gzip
import io
import json
import re
from html import unescape

import numpy as np
import pytest
from PIL import Image

from cggm.errors import UserError
from cggm_seg.pictures import gray_levels
from cggm_seg.reports.examples import choose_examples, read_examples
from cggm_seg.reports.report import report_evaluation, write_segmentation_report
from cggm_seg.reports.viewer import viewer_section
from tests.cggm_seg.report_runs import add_evaluation, write_run
from tests.quantifiers import every


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def data_of(html):
    return json.loads(re.search(r'id="viewer-data">(.*?)</script>', html, re.S)[1])


def volume_of(case, name):
    """Gray levels of an image as the viewer shows it, from the slices side by side."""
    file = io.BytesIO(base64.b64decode(case["images"][name].partition(",")[2]))
    picture = np.asarray(Image.open(file).convert("L"), float)
    width, height, depth = case["shape"]
    corners = [(z // case["columns"] * height, z % case["columns"] * width) for z in range(depth)]
    return np.stack([picture[t : t + height, a : a + width].T for t, a in corners], axis=-1)


def test_worst_median_and_best_are_chosen_once_each():
    dice = {f"c{i}": i / 10 for i in range(7)}
    assert choose_examples(dice) == {"worst": "c0", "median": "c3", "best": "c6"}
    assert choose_examples({"a": 0.5, "b": 0.1}) == {"worst": "b", "best": "a"}
    assert choose_examples({"a": 0.5}) == {"worst": "a"}


def test_run_without_an_evaluation_shows_its_own_numbers(run):
    html = unescape(write_segmentation_report(run).read_text())
    assert '<span class="value" data-v="0.5">0.500</span>' in html
    assert "No predictions are kept" in html
    assert "t2 learnt fastest throughout" in html
    assert "held back to 0.60" in html
    assert "t1's head never rose above chance" in html
    assert "SIMULATED" not in html
    assert every(f"<td data-v={v!r}" not in html for v in ("nan", "inf"))


def test_simulated_runs_and_cohorts_say_so(run, tmp_path):
    demo = write_run(tmp_path / "demo", simulated=True)
    assert "SIMULATED DATA" in write_segmentation_report(demo).read_text()
    add_evaluation(run, 2)
    assert "SIMULATED" not in write_segmentation_report(run).read_text()
    (run / "cases" / "cohort.json").write_text("{}")
    assert "SIMULATED DATA" in write_segmentation_report(run).read_text()


def test_viewer_holds_labels_exactly_and_images_nearly(run):
    rows = add_evaluation(run)
    dice = {case: (r["dice_WT"] + r["dice_TC"] + r["dice_ET"]) / 3 for case, r in rows.items()}
    shown = data_of(write_segmentation_report(run).read_text())["cases"]
    assert [case["role"] for case in shown] == ["worst", "median", "best"]
    assert shown[0]["id"] == min(dice, key=dice.get)
    for case, example in zip(
        shown, read_examples(dice, run / "predictions", run / "cases", {}), strict=True
    ):
        packed = np.frombuffer(gzip.decompress(base64.b64decode(case["labels"])), np.uint8)
        labels = packed.reshape(case["shape"], order="F")
        box = tuple(slice(o, o + n) for o, n in zip(case["origin"], case["shape"], strict=True))
        np.testing.assert_array_equal(labels & 15, example.truth[box])
        np.testing.assert_array_equal(labels >> 4, example.prediction[box])
        assert np.count_nonzero(labels) == np.count_nonzero(example.truth | example.prediction)
        for name, image in example.images.items():
            found, expected = volume_of(case, name), 255 * gray_levels(image[box])
            assert np.abs(found - expected).mean() < 12  # of 255; inverted gray differs by 54
            assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


def test_volumes_that_are_gone_are_told(run):
    add_evaluation(run, 2)
    for file in (run / "predictions").iterdir():
        file.unlink()
    html = write_segmentation_report(run).read_text()
    assert "Volumes are no longer in" in html
    assert 'id="viewer"' not in html


def test_no_case_no_viewer():
    section = viewer_section([], "why")
    assert not section.script
    assert "why" in section.body


def test_evaluation_outside_of_a_run_gets_a_report_beside_it(run, tmp_path):
    add_evaluation(run, 2)
    assert report_evaluation(run / "evaluation.json") == run / "report.html"
    moved = (run / "evaluation.json").rename(tmp_path / "scores.json")
    assert report_evaluation(moved) == tmp_path / "scores.html"
    assert "C1" in (tmp_path / "scores.html").read_text()


@pytest.mark.parametrize("content", ["{", "{}", '{"rows": {}, "problems": []}', '{"rows": 3}'])
def test_what_is_no_evaluation_is_refused(tmp_path, content):
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(UserError, match=r"e\.json: expected metrics by case"):
        report_evaluation(tmp_path / "e.json")


def test_dice_beside_a_map_is_that_of_the_map_where_another_prediction_was_scored(run):
    rows = add_evaluation(run)
    dice = {case: (r["dice_WT"] + r["dice_TC"] + r["dice_ET"]) / 3 for case, r in rows.items()}
    told = {case: score - 0.01 for case, score in dice.items()}
    folders = (run / "predictions", run / "cases", {})
    assert {e.case_id: e.dice for e in read_examples(told, *folders)}.items() <= told.items()
    found = read_examples(told, *folders, of_maps=True)
    assert len(found) == 3
    for example in found:
        assert example.dice == pytest.approx(dice[example.case_id])
