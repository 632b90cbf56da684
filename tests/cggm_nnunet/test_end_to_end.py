"""nnU-Net's own commands from raw data to predictions and subsets, on SIMULATED data."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("nnunetv2", reason="needs the extra nnunet: pip install 'cggm[nnunet]'")

from cggm_nnunet import simulate_dataset, trainers_folder
from tests.cggm_nnunet.plans import PARTS
from tests.house import ROOT

pytestmark = pytest.mark.slow
NUMBER = "511"


class Commands:
    """nnU-Net's commands in an environment of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = {part: folder / part for part in PARTS}
        self.environment = {
            **os.environ,
            **{f"nnUNet_{part}": str(path) for part, path in self.paths.items()},
            "nnUNet_extTrainer": str(trainers_folder()),
            "nnUNet_def_n_proc": "1",
            "MPLBACKEND": "agg",
            "OMP_WAIT_POLICY": "passive",  # nnU-Net takes all cores, and idle threads would spin
            "PYTHONPATH": str(ROOT),
        }

    def start(self, name: str, *arguments: object, processes: str = "0") -> subprocess.Popen:
        """A command; `processes` that load data, of which planning needs one."""
        script = Path(sys.executable).parent / name
        return subprocess.Popen(
            [*([str(script)] if script.exists() else [sys.executable, name]), *map(str, arguments)],
            env=self.environment | {"nnUNet_n_proc_DA": processes},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, name: str, *arguments: object, processes: str = "0") -> str:
        """A command's output."""
        command = self.start(name, *arguments, processes=processes)
        told, _ = command.communicate(timeout=600)
        assert command.returncode == 0, told[-5000:]
        return told

    def kill_once(self, reached: Callable[[], bool], name: str, *arguments: object) -> None:
        """Start a command and kill it and its children when something has happened."""
        command = self.start(name, *arguments)
        while not reached():
            assert command.poll() is None, command.stdout.read()[-5000:]
            time.sleep(0.02)
        os.killpg(command.pid, signal.SIGKILL)
        command.communicate()

    def settings(self, **values: object) -> None:
        """Write the settings beside the plans."""
        (file,) = self.paths["preprocessed"].glob("*/nnUNetPlans.json")
        file.with_name("cggm.yaml").write_text(json.dumps(values))

    def shrink(self, plans: str) -> None:
        """Fewer features and smaller batches, for a processor."""
        (file,) = self.paths["preprocessed"].glob(f"*/{plans}.json")
        plan = json.loads(file.read_text())
        for configuration in plan["configurations"].values():
            if "architecture" in configuration:
                configuration["batch_size"] = 2
                configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [6, 12, 24, 24]
        file.write_text(json.dumps(plan))


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("nnunet"))
    simulate_dataset(commands.paths["raw"], int(NUMBER), "brain", regions=True)
    several = ("-d", NUMBER, "-np", 1, "-npfp", 1, "-c", "3d_fullres", "2d")
    commands.run("nnUNetv2_plan_and_preprocess", *several, processes="1")
    commands.run(
        "nnUNetv2_plan_experiment", "-d", NUMBER, "-pl", "nnUNetPlannerResEncM", processes="1"
    )
    for plans in ("nnUNetPlans", "nnUNetResEncUNetMPlans"):
        commands.shrink(plans)
    return commands


def test_trains_resumes_predicts_and_scores_subsets(commands):
    short = {"iterations": 2, "validation_iterations": 1, "save_every": 1, "head_lr": 0.005}
    train = (NUMBER, "3d_fullres", 0, "-tr", "nnUNetTrainerCGGM", "-device", "cpu")
    commands.settings(epochs=3, **short)

    def two_epochs_are_saved():  # that of the first is removed once nnU-Net's file is written
        states = commands.paths["results"].glob("*/*/fold_0/checkpoint_latest.balance_*.pt")
        return [state.name[-8:-3] for state in states] == ["00002"]

    commands.kill_once(two_epochs_are_saved, "nnUNetv2_train", *train)
    told = commands.run("nnUNetv2_train", *train, "--c")
    assert "Epoch 2" in told
    assert "Epoch 1\n" not in told
    (fold,) = commands.paths["results"].glob("*/nnUNetTrainerCGGM__*/fold_0")
    rows = [json.loads(line) for line in (fold / "balance.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (fold / "checkpoint_final.balance_00003.pt").is_file()
    assert not [*fold.glob("checkpoint_latest*")]
    assert len([*(fold / "validation").glob("*.nii.gz")]) == 2
    raw = next(commands.paths["raw"].iterdir())
    output = commands.folder / "predictions"
    where = ("-i", raw / "imagesTs", "-o", output, "-d", NUMBER, "-c", "3d_fullres", "-f", 0)
    quick = ("--disable_tta", "-npp", 1, "-nps", 1, "-device", "cpu")
    commands.run("nnUNetv2_predict", *where, "-tr", "nnUNetTrainerCGGM", *quick)
    found = np.asarray(nib.load(output / "case_000.nii.gz").dataobj)
    assert found.shape == (48, 48, 32)
    assert {*np.unique(found)} <= {0, 1, 2}
    _score_subsets(commands, fold.parent, raw, found)


def _score_subsets(commands, model, raw, whole):
    """The subset of all modalities is what nnU-Net predicts; the others have files of their own."""
    output = commands.folder / "subsets"
    folders = ("--images", raw / "imagesTs", "--labels", raw / "labelsTs", "--output", output)
    quick = ("--mirroring", "false", "--device", "cpu")
    told = commands.run("pipelines/nnunet_subsets.py", "--model", model, *folders, *quick)
    scores = json.loads((output / "subsets.json").read_text())["dice"]
    assert len(scores) == 7
    assert {*scores["FLAIR+T1c+T2"]} == {"edema", "lesion"}
    again = np.asarray(nib.load(output / "FLAIR+T1c+T2" / "case_000.nii.gz").dataobj)
    assert np.array_equal(again, whole)
    one = np.asarray(nib.load(output / "T2" / "case_000.nii.gz").dataobj)
    assert not np.array_equal(one, whole)
    wanted = np.asarray(nib.load(raw / "labelsTs" / "case_000.nii.gz").dataobj)
    other = np.asarray(nib.load(output / "T2" / "case_001.nii.gz").dataobj)
    second = np.asarray(nib.load(raw / "labelsTs" / "case_001.nii.gz").dataobj)
    dice = [
        2 * ((a > 0) & (b > 0)).sum() / ((a > 0).sum() + (b > 0).sum())
        for a, b in ((one, wanted), (other, second))
    ]
    assert scores["T2"]["edema"] == pytest.approx(np.mean(dice))
    assert "report.html" in told
    page = (output / "report.html").read_text()
    assert "FLAIR + T1c" in page
    assert "simulated" in page


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_residual_encoders_train_and_validate(commands, configuration):
    commands.settings(epochs=1, iterations=2, validation_iterations=1)
    commands.run(
        "nnUNetv2_train",
        *(NUMBER, configuration, 1, "-p", "nnUNetResEncUNetMPlans"),
        *("-tr", "nnUNetTrainerJoint", "-device", "cpu"),
    )
    results = commands.paths["results"].glob(f"*/nnUNetTrainerJoint__*__{configuration}/fold_1")
    (fold,) = results
    assert (fold / "checkpoint_final.pth").is_file()
    assert (fold / "validation" / "summary.json").is_file()
