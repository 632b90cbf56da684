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
NUMBER, OF_CLASSES = "511", "512"  # data sets of regions and of classes
SHORT = {"epochs": 3, "validation_iterations": 1, "save_every": 1, "head_lr": 0.005}
QUICK = ("--disable_tta", "-npp", 0, "-nps", 0, "-device", "cpu")  # no processes beside it
SHAPES = {NUMBER: (48, 48, 32), OF_CLASSES: (32, 32, 16)}
IN_TURN = """
import json, sys
from importlib.metadata import entry_points

for name, *arguments in json.loads(sys.argv[1]):
    sys.argv = [name, *arguments]
    (command,) = entry_points(group="console_scripts", name=name)
    command.load()()
"""


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
        own = [str(script)] if script.exists() else [sys.executable, *name.split()]
        return subprocess.Popen(
            [*own, *map(str, arguments)],
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

    def run_in_turn(self, *commands: tuple[object, ...], processes: str = "0") -> str:
        """Several of nnU-Net's commands in one process, which imports PyTorch once."""
        words = json.dumps([[*map(str, command)] for command in commands])
        return self.run("-c", IN_TURN, words, processes=processes)

    def kill_once(self, reached: Callable[[], bool], name: str, *arguments: object) -> None:
        """Start a command and kill it and its children when something has happened."""
        command = self.start(name, *arguments)
        while not reached():
            assert command.poll() is None, command.stdout.read()[-5000:]
            time.sleep(0.02)
        os.killpg(command.pid, signal.SIGKILL)
        command.communicate()

    def settings(self, number: str, **values: object) -> None:
        """Write the settings beside the plans."""
        (file,) = self.paths["preprocessed"].glob(f"Dataset{number}_*/nnUNetPlans.json")
        file.with_name("cggm.yaml").write_text(json.dumps(SHORT | values))

    def raw(self, number: str) -> Path:
        """Folder of a raw data set."""
        (folder,) = self.paths["raw"].glob(f"Dataset{number}_*")
        return folder

    def judged(self, number: str, *model: object) -> tuple[list[tuple[object, ...]], Path]:
        """Commands that predict the test cases and evaluate them, and where predictions come to."""
        raw, output = self.raw(number), self.folder / "_".join(map(str, (number, *model[1::2])))
        where = ("-i", raw / "imagesTs", "-o", output, "-d", number, "-f", 0)
        predict = ("nnUNetv2_predict", *where, *model, *QUICK)
        described = ("-djfile", output / "dataset.json", "-pfile", output / "plans.json")
        evaluate = ("nnUNetv2_evaluate_folder", raw / "labelsTs", output, *described, "-np", 1)
        return [predict, evaluate], output

    def shrink(self, plans: str) -> None:
        """Fewer features and smaller batches, for a processor."""
        for file in self.paths["preprocessed"].glob(f"*/{plans}.json"):
            plan = json.loads(file.read_text())
            networks = [c for c in plan["configurations"].values() if "architecture" in c]
            for network in networks:
                network["batch_size"] = 2
                stages = network["architecture"]["arch_kwargs"]["n_stages"]
                features = [6, 12, *[24] * (stages - 2)]
                network["architecture"]["arch_kwargs"]["features_per_stage"] = features
            file.write_text(json.dumps(plan))


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("nnunet"))
    for number, shape in SHAPES.items():
        regions = number == NUMBER
        simulate_dataset(commands.paths["raw"], int(number), "brain", regions=regions, shape=shape)
    prepare, one = "nnUNetv2_plan_and_preprocess", ("-np", 1, "-npfp", 1)
    commands.run_in_turn(
        (prepare, "-d", NUMBER, *one, "-c", "3d_fullres", "2d"),
        ("nnUNetv2_plan_experiment", "-d", NUMBER, "-pl", "nnUNetPlannerResEncM"),
        (prepare, "-d", OF_CLASSES, *one, "-c", "2d"),
        processes="1",
    )
    for plans in ("nnUNetPlans", "nnUNetResEncUNetMPlans"):
        commands.shrink(plans)
    return commands


def test_trains_resumes_predicts_and_scores_subsets(commands):
    train = (NUMBER, "3d_fullres", 0, "-tr", "nnUNetTrainerCGGM", "-device", "cpu")
    commands.settings(NUMBER, iterations=2)

    def two_epochs_are_saved():  # that of the first is removed once nnU-Net's file is written
        states = commands.paths["results"].glob("*/*/fold_0/checkpoint_latest.balance_*.pt")
        return [state.name[-8:-3] for state in states] == ["00002"]

    commands.kill_once(two_epochs_are_saved, "nnUNetv2_train", *train)
    told = commands.run("nnUNetv2_train", *train, "--c")
    assert "Epoch 2" in told
    assert "Epoch 1\n" not in told
    (fold,) = commands.paths["results"].glob(f"Dataset{NUMBER}_*/nnUNetTrainerCGGM__*/fold_0")
    rows = [json.loads(line) for line in (fold / "balance.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (fold / "checkpoint_final.balance_00003.pt").is_file()
    assert not [*fold.glob("checkpoint_latest*")]
    assert len([*(fold / "validation").glob("*.nii.gz")]) == 2
    judged, output = commands.judged(NUMBER, "-c", "3d_fullres", "-tr", "nnUNetTrainerCGGM")
    commands.run_in_turn(*judged)
    raw = commands.raw(NUMBER)
    _assert_evaluated(output, raw, [(1, 2), (2,)], SHAPES[NUMBER])
    found = np.asarray(nib.load(output / "case_000.nii.gz").dataobj)
    _score_subsets(commands, fold.parent, raw, found)


def _assert_evaluated(output, raw, regions, shape):
    """Predictions of the grid of the images, and what nnU-Net says of them worked out again."""
    summary = json.loads((output / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    for case in summary["metric_per_case"]:
        name = Path(case["prediction_file"]).name
        found, true = (np.asarray(nib.load(f / name).dataobj) for f in (output, raw / "labelsTs"))
        assert found.shape == true.shape == shape
        assert {*np.unique(found)} <= {0, 1, 2}
        assert len(case["metrics"]) == len(regions)
        for measured, labels in zip(case["metrics"].values(), regions, strict=True):
            here, there = np.isin(found, labels), np.isin(true, labels)
            dice = 2 * (here & there).sum() / (here.sum() + there.sum())
            assert measured["Dice"] == pytest.approx(dice)


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


def test_residual_encoders_in_two_and_three_dimensions(commands):
    commands.settings(NUMBER, iterations=1)
    steps, outputs = [], {}
    model = ("-p", "nnUNetResEncUNetMPlans", "-tr", "nnUNetTrainerJoint")
    for configuration in ("2d", "3d_fullres"):
        train = ("nnUNetv2_train", NUMBER, configuration, 0, *model, "-device", "cpu")
        judged, outputs[configuration] = commands.judged(NUMBER, "-c", configuration, *model)
        steps += [train, *judged]
    commands.run_in_turn(*steps)
    for configuration, output in outputs.items():
        results = commands.paths["results"].glob(f"*/nnUNetTrainerJoint__*__{configuration}/fold_0")
        (fold,) = results
        assert (fold / "checkpoint_final.pth").is_file()
        assert (fold / "validation" / "summary.json").is_file()
        assert len((fold / "balance.jsonl").read_text().splitlines()) == 3
        _assert_evaluated(output, commands.raw(NUMBER), [(1, 2), (2,)], SHAPES[NUMBER])


def test_classes_in_two_dimensions(commands):
    commands.settings(OF_CLASSES, iterations=1)
    model = ("-c", "2d", "-tr", "nnUNetTrainerCGGM")
    judged, output = commands.judged(OF_CLASSES, *model)
    train = ("nnUNetv2_train", OF_CLASSES, "2d", 0, *model[2:], "-device", "cpu")
    commands.run_in_turn(train, *judged)
    (fold,) = commands.paths["results"].glob(f"Dataset{OF_CLASSES}_*/nnUNetTrainerCGGM__*/fold_0")
    rows = [json.loads(line) for line in (fold / "balance.jsonl").read_text().splitlines()]
    assert [{*row["term"]} for row in rows] == [{"FLAIR", "T1c", "T2"}] * 3
    assert (fold / "validation" / "summary.json").is_file()
    _assert_evaluated(output, commands.raw(OF_CLASSES), [(1,), (2,)], SHAPES[OF_CLASSES])
