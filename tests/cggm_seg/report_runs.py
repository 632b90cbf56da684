"""BraTS runs as a training would leave them, with numbers chosen by the test."""

import json
from pathlib import Path

import numpy as np

from cggm_seg.data.cases import find_cases
from cggm_seg.data.volumes import read_case, write_labels
from cggm_seg.evaluation.folder import evaluate_folder
from tests.cggm_seg.nifti import write_case

CONFIG = "task: brats\ndata: {data}\nseed: 3\nbalancer: {{name: CGGM, settings: {{rho: unit}}}}\n"
DICE = {"dice_WT": 0.75, "dice_TC": 0.5, "dice_ET": 0.25, "dice_mean": 0.5}


def write_run(folder: Path, *, simulated: bool = False) -> Path:
    """Writes a run folder with everything but volumes."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(data=folder / "cases"))
    (folder / "split.json").write_text("{}")
    metrics = [
        {"epoch": e, "iteration": 20 * e, "lr": 0.1, "train_loss": 1 / e,
         "val_dice_mean": 0.1 * e + 1 / 3000}
        for e in (1, 2, 3)
    ]  # fmt: skip
    balance = [
        {"iteration": k, "epoch": 1, "score": {"t1": 0.01, "t2": k / 100},
         "term": {"t1": 1.4, "t2": 0.6}, "gate": {"t1": 0.0, "t2": 1.0}}
        for k in range(1, 61)
    ]  # fmt: skip
    for name, rows in (("metrics", metrics), ("balance", balance)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    results = {"epoch": 2, "max_epochs": 3, "simulated": simulated, "validation": DICE}
    (folder / "results.json").write_text(json.dumps(results))
    subsets = {"t1+t2": DICE, "t1": DICE, "t2": DICE}
    (folder / "subsets.json").write_text(json.dumps(subsets))
    return folder


def add_evaluation(run: Path, cases: int = 4) -> dict[str, dict[str, float]]:
    """Adds predictions that get worse from case to case, and their evaluation; returns its rows."""
    data, predictions = run / "cases", run / "predictions"
    predictions.mkdir()
    for number in range(cases):
        write_case(data, f"C{number}", seed=number)
    for number, case in enumerate(find_cases(data, labelled=True)[0]):
        volumes = read_case(case)
        assert volumes.label is not None
        prediction = np.roll(volumes.label, number, axis=0)
        write_labels(predictions / f"{case.id}.nii.gz", prediction, volumes.grid, case.labels)
    evaluation = evaluate_folder(predictions, data, progress=False)
    (run / "evaluation.json").write_text(
        evaluation.to_json(predictions=predictions, reference=data)
    )
    return evaluation.rows
