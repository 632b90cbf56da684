"""Every pipeline on tiny data, as one process that has no network."""

import sys
from importlib.util import find_spec
from pathlib import Path

from cggm.runs.cli import run
from cggm_cls.data.food101.simulation import simulate_features
from cggm_cls.data.iemocap.simulation import simulate_iemocap
from cggm_cls.data.mosi.simulation import simulate_mosi
from pipelines import compare
from tests.cggm_seg.nifti import write_case
from tests.pipelines.commands import call, tiny_config
from tests.pipelines.comparing import TINY

SHAPE = (48, 40, 20)


def segment(folder: Path) -> None:
    """Train with a loader worker and two that build the cache, predict, evaluate."""
    data, model, output = folder / "brats", folder / "model", folder / "predictions"
    for number in range(3):
        write_case(data, f"case{number}", shape=SHAPE, seed=number)
    options = ("--config", tiny_config(folder), "--workers", 2, "--subsets", "false")
    assert call("train", "--data", data, *options, "--output", model) == 0
    assert call("infer", "--model", model, "--input", data, "--output", output) == 0
    scores = ("--reference", data, "--output", folder / "scores.json")
    assert call("evaluate", "--predictions", output, *scores) == 0


def classify(folder: Path, config: Path) -> None:
    """Train on each kind of sequences."""
    simulate_mosi(folder / "mosi.pkl", train=64, valid=32, test=32)
    simulate_iemocap(folder / "iemocap", per_speaker=6)
    data = {
        "mosi": ("--data", folder / "mosi.pkl"),
        "iemocap": ("--data", folder / "iemocap"),
        "food101": ("--data", simulate_features(folder / "food101")),
        "mfeat": ("--mlflow", folder / "mlflow") if find_spec("mlflow") else (),
    }
    for task, given in data.items():
        options = ("--config", config, "--max_epochs", 1, "--output", folder / f"{task}-run")
        assert call(task, *given, *options) == 0, task


def main(folder: Path) -> None:
    config = folder / "sequences.yaml"
    config.write_text(TINY)
    segment(folder)
    classify(folder, config)
    options = ("--task", "mfeat", "--methods", "joint", "--seeds", 1, "--max_epochs", 1)
    given = (*options, "--config", config, "--output", folder / "comparison")
    assert run(compare.main, [str(argument) for argument in given]) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
