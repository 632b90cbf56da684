"""Reports of folders that others filled: one line that names the file, whatever it holds."""

import io
import json
import zipfile

import numpy as np
import pytest

from cggm.runs.cli import run as run_command
from pipelines import report
from tests.cggm_seg.report_runs import add_evaluation, write_run
from tests.pipelines.browser import opened
from tests.pipelines.test_report import write_comparison, write_sequences

DEEP = "[" * 100_000
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join('*' + chr(97 + i) for _ in range(9))}]\n"
    for i in range(8)
)
METRIC = '{"epoch": 1, "iteration": 1, "lr": 0.1, "train_loss": 1.0'
CASES = [
    ("config.yaml", BOMB),
    ("config.yaml", "a: " + "[" * 3000),
    ("config.yaml", "task: brats\nseed: 1\nbalancer: CGGM\n"),
    ("config.yaml", "task: brats\nseed: one\n"),
    ("config.yaml", "- a\n"),
    ("environment.json", DEEP),
    ("environment.json", '{"command": 3}'),
    ("environment.json", '{"packages": ["torch"]}'),
    ("environment.json", '{"earlier_starts": [3]}'),
    ("environment.json", '{"changed": {"lr": 3}, "resumed_at": 5}'),
    ("metrics.jsonl", DEEP + "\n"),
    ("metrics.jsonl", METRIC + ', "val_dice_mean": "high"}\n'),
    ("metrics.jsonl", METRIC + ', "val_dice_mean": ' + "9" * 400 + "}\n"),
    ("balance.jsonl", '{"iteration": 1, "score": 0.5}\n'),
    ("balance.jsonl", '{"iteration": 1, "term": {"t1": []}}\n'),
    ("balance.jsonl", '{"iteration": 1, "lead": 0.5}\n'),
    ("timing.jsonl", '{"seconds": null}\n'),
    ("results.json", DEEP),
    ("results.json", '{"validation": {"dice_mean": {}}}'),
    ("results.json", '{"validation": [0.5]}'),
    ("metric_records.json", '[{"name": "<img>"}]'),
    ("evaluation.json", DEEP),
    ("evaluation.json", '{"rows": {"a": {"dice_WT": "x"}}, "problems": []}'),
    (
        "evaluation.json",
        '{"rows": {"a": {"dice_WT": 1, "dice_TC": 1, "dice_ET": 1, "hd95_TC": null}}, '
        '"problems": []}',
    ),
    ("validation.json", '{"data": 3, "rows": []}'),
    ("split.json", DEEP),
    ("split.json", '{"lacking": {"t1": 3}}'),
    ("subsets.json", DEEP),
    ("subsets.json", '{"t1": {"dice_mean": "x"}, "t2": {}}'),
    ("checkpoints/epoch-0001-step-00000001/checkpoint.json", DEEP),
    ("checkpoints/epoch-0001-step-00000001/checkpoint.json", '{"progress": []}'),
]


def refused(path, capsys, name):
    assert run_command(report.main, [str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert name in err
    assert len(err) < 2000


@pytest.mark.parametrize(("name", "text"), CASES)
def test_a_hostile_file_of_a_run_is_refused_in_one_line(tmp_path, capsys, name, text):
    run = write_run(tmp_path / "run")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(text)
    refused(run, capsys, name.rpartition("/")[2])
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("runs.jsonl", DEEP + "\n"),
        ("runs.jsonl", '{"task": "mfeat"}\n'),
        ("refused.jsonl", '{"task": [], "method": "a", "reason": "b"}\n'),
        ("runs/mfeat/cggm/seed-0/metrics.jsonl", DEEP + "\n"),
        ("runs/mfeat/cggm/seed-0/metric_records.json", "{}"),
    ],
)
def test_a_hostile_file_of_a_comparison_is_refused_in_one_line(tmp_path, capsys, name, text):
    write_comparison(tmp_path)
    (tmp_path / name).write_text(text)
    refused(tmp_path, capsys, name.rpartition("/")[2])


def test_a_record_of_a_comparison_with_wrong_types_is_refused(tmp_path, capsys):
    write_comparison(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    lines[2]["test"] = {"acc": "good"}
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused(tmp_path, capsys, "line 3, test, acc to be a number")


def archive(**arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        archive(prediction=np.zeros((200, 4)))[:-30],
        archive(prediction=np.zeros((200, 4))),
        archive(prediction=np.zeros((7, 4)), target=np.zeros(200, int)),
        archive(prediction=np.zeros((200, 9)), target=np.zeros(200, int)),
        archive(prediction=np.zeros((200, 4)), target=np.full(200, 4)),
        archive(prediction=np.zeros((200, 4)), target=np.full(200, 0.5)),
    ],
)
def test_predictions_of_another_run_are_refused(tmp_path, capsys, content):
    folder, _ = write_sequences(tmp_path / "run", 4)
    (folder / "predictions.npz").write_bytes(content)
    refused(folder, capsys, "predictions")


def test_a_member_that_is_no_array_is_refused(tmp_path, capsys):
    folder, _ = write_sequences(tmp_path / "run", 4)
    with zipfile.ZipFile(folder / "predictions.npz", "w") as file:
        file.writestr("prediction.npy", b"\x80\x04N.")  # a pickle
        file.writestr("target.npy", b"\x80\x04N.")
    refused(folder, capsys, "predictions")


def test_confusions_that_are_no_square_are_refused(tmp_path, capsys):
    folder, _ = write_sequences(tmp_path / "run", 4)
    (folder / "predictions.npz").unlink()
    results = json.loads((folder / "results.json").read_text())
    for confusion in ([[1, 2], [3]], [[1, -1], [0, 1]], [[0]]):
        results["test"]["confusion"] = confusion
        (folder / "results.json").write_text(json.dumps(results))
        refused(folder, capsys, "results.json")


HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">"


def test_names_in_a_report_stay_text(tmp_path):
    run = write_run(tmp_path / "run")
    rows = add_evaluation(run, 3)
    balance = [
        {"iteration": k, "epoch": 1, "score": {HOSTILE: k / 60, "t1": 0.5}, "term": {HOSTILE: 1.0}}
        for k in range(1, 61)
    ]
    (run / "balance.jsonl").write_text("".join(json.dumps(row) + "\n" for row in balance))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["rows"][HOSTILE] = next(iter(rows.values()))
    evaluation["problems"] = [HOSTILE]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "environment.json").write_text(json.dumps({"command": [HOSTILE], "cpu": HOSTILE}))
    assert run_command(report.main, [str(run)]) == 0
    with opened(run / "report.html") as page:
        assert page.locator("img[src=x]").count() == 0
        assert "hacked" not in page.title()
        assert page.locator("th", has_text=HOSTILE).count() > 0
        assert page.locator(".legend li", has_text=HOSTILE).count() > 0
