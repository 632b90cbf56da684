"""Reports of all kinds, written by the command and opened in a browser."""

import json

import numpy as np
import pytest
from PIL import Image

from cggm.comparison.records import FinishedRun
from cggm.runs.cli import run as run_command
from cggm.runs.folder import RunFolder
from cggm.runs.watch.logs import read_jsonl
from cggm_cls.metrics import classification_metrics, sentiment_metrics
from cggm_cls.reports.samples import write_predictions
from pipelines import report
from tests.cggm_seg.report_runs import add_evaluation, write_run
from tests.pipelines.browser import opened, overflow
from tests.quantifiers import every


def write_sequences(folder, classes):
    """A finished run on sequences, with predictions."""
    write_run(folder)
    (folder / "split.json").unlink()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("task: brats", "task: mosi"))
    rng = np.random.default_rng(0)
    if classes is None:
        target = rng.normal(0, 1, 80).clip(-3, 3)
        prediction = target + rng.normal(0, 0.5, 80)
        test = dict(sentiment_metrics(prediction.astype(np.float32), target))
    else:
        target = rng.integers(0, classes, 200)
        prediction = rng.normal(0, 1, (200, classes)) + 3 * np.eye(classes)[target]
        test = dict(classification_metrics(prediction, target, classes))
    results = {"epoch": 1, "max_epochs": 3, "simulated": False, "test": test, "subsets": {}}
    (folder / "results.json").write_text(json.dumps(results))
    write_predictions(RunFolder(folder), prediction, target)
    return folder, test


def write_comparison(folder):
    """Two methods under five seeds; runs of the first have curves."""
    lines = []
    for seed in range(5):
        for method, gain in (("joint", 0.0), ("cggm", 0.1)):
            path = f"runs/mfeat/{method}/seed-{seed}"
            write_run(folder / path)
            test = {"acc": 0.5 + gain * (1 + seed / 10), "f1_macro": 0.5}
            lines.append(FinishedRun("mfeat", method, seed, 1.0, None, False, test, {}, {}, path))
    (folder / "comparison.json").write_text('{"arguments": []}')
    rows = "".join(json.dumps(vars(line)) + "\n" for line in lines)
    (folder / "runs.jsonl").write_text(rows)
    return folder


def reported(path):
    assert run_command(report.main, [str(path)]) == 0
    return path / "report.html"


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("brats") / "run", simulated=True)
    rows = add_evaluation(run, 5)
    return reported(run), rows


def column(page, table, index):
    cells = page.locator(f"{table} tbody tr > :nth-child({index})").all()
    return [cell.get_attribute("data-v") or cell.inner_text() for cell in cells]


def test_table_has_the_exact_numbers_and_sorts(brats):
    file, rows = brats
    table = "#evaluation-case-by-case table.sortable"
    with opened(file) as page:
        worst_first = [float(v) for v in column(page, table, 2)]
        assert worst_first == sorted(worst_first)
        for case, dice, hd95 in zip(
            column(page, table, 1), column(page, table, 3), column(page, table, 6), strict=True
        ):
            assert (float(dice), float(hd95)) == (rows[case]["dice_WT"], rows[case]["hd95_WT"])
        head = page.locator(f"{table} thead th").nth(5)
        head.locator("button").press("Enter")
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert page.locator(f"{table} [aria-sort]").count() == 1
        distances = [float(v) for v in column(page, table, 6)]
        assert distances == sorted(distances, reverse=True)
        page.locator(f"{table} thead button").first.click()
        assert column(page, table, 1) == sorted(rows)


def test_validation_equals_metrics_jsonl(brats):
    file, _ = brats
    wanted = [row["val_dice_mean"] for row in read_jsonl(file.parent / "metrics.jsonl")]
    with opened(file) as page:
        assert [float(v) for v in column(page, "#training table.sortable", 2)] == wanted


def test_click_wheel_and_keys_move_the_crosshair(brats):
    file, _ = brats
    with opened(file) as page:
        page.wait_for_function("document.getElementById('viewer-position').textContent != ''")
        page.wait_for_selector("#viewer-position:has-text('voxel')")

        def voxel():
            text = page.inner_text("#viewer-position")
            return [int(v) for v in text.partition("voxel ")[2].partition(":")[0].split(", ")]

        axial = page.locator("#viewer-axial")
        x, y, z = voxel()
        box = axial.bounding_box()
        axial.click(position={"x": box["width"] / 4, "y": box["height"] / 4})
        clicked = voxel()
        assert clicked[2] == z
        assert clicked[0] < x
        assert clicked[1] < y
        axial.press("ArrowRight")
        axial.press("PageUp")
        assert voxel() == [clicked[0] + 1, clicked[1], z + 1]
        page.locator("#viewer-coronal").press("ArrowDown")
        assert voxel()[2] == z
        page.mouse.wheel(0, 100)  # the pointer is still over the axial plane
        page.wait_for_selector(f"#viewer-axial[aria-label*='slice {z - 1},']")
        page.locator("#viewer-sagittal-slice").press("ArrowRight")
        assert voxel()[0] == clicked[0] + 2


def test_overlays_and_cases_change_the_picture(brats):
    file, _ = brats
    pixels = "document.getElementById('viewer-axial').toDataURL()"
    with opened(file) as page:
        page.wait_for_selector("#viewer-position:has-text('voxel')")
        seen = {}
        for kind in ("none", "truth", "prediction", "difference"):
            page.check(f"input[value={kind}]")
            seen[kind] = page.evaluate(pixels)
        assert len({*seen.values()}) == 4  # of the worst case, which is shown first
        page.select_option("#viewer-case", "2")
        page.wait_for_selector("#viewer-position:has-text('C0')")
        best = {}
        for kind in ("none", "difference"):
            page.check(f"input[value={kind}]")
            best[kind] = page.evaluate(pixels)
        assert best["none"] == best["difference"]  # a prediction without a fault
        page.select_option("#viewer-image", "t2")
        page.wait_for_selector("#viewer-position:has-text('T2')")
        assert page.evaluate(pixels) != best["none"]


def test_phone_and_dark_mode(brats, tmp_path):
    file, _ = brats
    shades = {}
    for dark in (False, True):
        with opened(file, width=390, dark=dark) as page:
            page.wait_for_selector("#viewer-position:has-text('voxel')")
            assert overflow(page) == 0
            assert page.locator(".banner").is_visible()
            page.screenshot(path=tmp_path / "page.png")
            image = Image.open(tmp_path / "page.png").convert("L")
            shades[dark] = float(np.median(np.asarray(image)))
    assert shades[False] > 200
    assert shades[True] < 60


def test_pictures_have_words_and_controls_have_names(brats):
    file, _ = brats
    with opened(file) as page:
        assert page.locator("svg[role=img]").count() > 3
        assert page.locator("svg:not([aria-label]):not([aria-hidden])").count() == 0
        unnamed = "[...document.querySelectorAll('select, input')].filter(e => !e.labels.length)"
        assert page.evaluate(f"{unnamed}.length") == 0
        assert page.locator("table:not(:has(caption))").count() == 0
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"


@pytest.mark.parametrize("classes", [None, 4, 30])
def test_sequence_runs(tmp_path, classes):
    folder, test = write_sequences(tmp_path / "run", classes)
    with opened(reported(folder), width=390) as page:
        assert overflow(page) == 0
        values = page.locator(".card .value").all()
        found = {float(v.get_attribute("data-v")) for v in values}
        assert found == {v for v in test.values() if isinstance(v, float)}
        names = ["predictions"] if classes is None else ["confusions", "calibration"]
        assert every(page.locator(f"section#{name}").is_visible() for name in names)
        intervals = page.locator(".card .interval").all_inner_texts()
        for value, text in zip(values, intervals, strict=True):
            ends = text.replace("\N{MINUS SIGN}", "-").removeprefix("95 %: ").split(" to ")
            assert not text or float(ends[0]) <= float(value.inner_text()) <= float(ends[1])
        assert sum(map(bool, intervals)) >= 2


def test_comparison(tmp_path):
    with opened(reported(write_comparison(tmp_path)), width=390) as page:
        assert overflow(page) == 0
        assert page.locator("#ranks svg[aria-label*='cggm 1.000']").count() == 1
        difference = page.locator("#mfeat svg[aria-label*='minus joint']")
        assert "cggm 0.120 (0.1" in difference.get_attribute("aria-label")
        assert page.locator("#mfeat h3:has-text('Validation')").count() == 0  # its runs had none
        assert page.locator("#mfeat h3:has-text('Scores of the heads')").is_visible()
        assert page.locator("#mfeat td.best").first.inner_text().startswith("0.620")


def test_evaluation_of_all_of_brats_opens_at_once(tmp_path):
    run = write_run(tmp_path / "run")
    rows = add_evaluation(run, 3)
    first, *_, last = sorted(rows, key=lambda case: rows[case]["dice_WT"])
    between = {f"case-{i}": rows[first if i % 2 else last] for i in range(1248)}
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["rows"] |= between
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    with opened(reported(run)) as page:
        loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        assert 0 < page.evaluate(loaded) < 2000  # ms
        assert page.locator("#evaluation-case-by-case table.sortable tbody tr").count() == 1251


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert run_command(report.main, [str(tmp_path / "no")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert run_command(report.main, [str(tmp_path)]) == 2
    assert run_command(report.main, []) == 2
