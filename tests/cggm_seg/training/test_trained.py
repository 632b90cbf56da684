"""Runs as they are predicted with: one, several, or the folds of a cross-validation."""

import json
import shutil

import numpy as np
import pytest
import torch

from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm_seg.data.cases import find_input
from cggm_seg.inference.volume import predict_probabilities
from cggm_seg.training.trained import TrainedNetwork
from tests.cggm_seg.exporting import finished_run
from tests.cggm_seg.nifti import write_case
from tests.cggm_seg.predicting import FLOAT32, brain_volume


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """A folder of two folds whose weights differ, as a cross-validation leaves it."""
    group = tmp_path_factory.mktemp("cv")
    for k in (2, 10):
        run, _ = finished_run(group / f"fold-{k}")
        if k == 10:  # another checkpoint
            from cggm.runs.checkpoints.load import RunProgress
            from cggm.runs.checkpoints.save import save_checkpoint

            trained = TrainedNetwork.load([run])
            with torch.no_grad():
                for parameter in trained.network.parameters():
                    parameter += 0.02 * torch.randn_like(parameter)
            shutil.rmtree(run.checkpoints)
            run.checkpoints.mkdir()
            save_checkpoint(run.checkpoints, trained.network, {}, RunProgress(3, 30, score=0.5))
    shutil.copy(group / "fold-2" / "config.yaml", group / "config.yaml")
    return group


def test_a_folder_of_folds_is_its_folds_by_number(folds):
    runs = RunFolder.open(folds).members()
    assert [run.path.name for run in runs] == ["fold-2", "fold-10"]
    assert RunFolder.open(folds / "fold-2").members() == [RunFolder(folds / "fold-2")]


def test_ensemble_averages_the_probabilities_of_its_folds(folds):
    runs = RunFolder.open(folds).members()
    images = brain_volume((40, 33, 5))[0][:2]
    ensemble = TrainedNetwork.load(runs).network.eval()
    alone = [
        predict_probabilities(TrainedNetwork.load([run]).network.eval(), images, FLOAT32)
        for run in runs
    ]
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    found = predict_probabilities(ensemble, images, FLOAT32)
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, atol=1e-5)


def test_a_run_named_twice_is_refused(folds):
    run = RunFolder(folds / "fold-2")
    with pytest.raises(UserError, match="named twice"):
        TrainedNetwork.load([run, run])


def test_runs_of_other_modalities_are_refused(folds, tmp_path):
    shutil.copytree(folds / "fold-2", tmp_path / "other")
    config = tmp_path / "other" / "config.yaml"
    config.write_text(config.read_text().replace("- t1ce", "- t2"))
    with pytest.raises(UserError, match=r"other: expected a run with the modalities"):
        TrainedNetwork.load([RunFolder(folds / "fold-2"), RunFolder(tmp_path / "other")])


def test_cases_that_a_run_learned_from_are_told(folds, tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for name in "abd":
        write_case(data, name, shape=(32, 32, 4))
    write_case(elsewhere, "a", shape=(32, 32, 4))
    runs = []
    for name, training in (("one", ["a", "b"]), ("two", ["a", "d"])):
        shutil.copytree(folds / "fold-2", tmp_path / name)
        runs.append(RunFolder(tmp_path / name))
        runs[-1].split.write_text(json.dumps({"training": training, "validation": ["c"]}))
        config = runs[-1].config.read_text().splitlines()
        lines = [line for line in config if not line.startswith("data:")]
        runs[-1].config.write_text("\n".join([*lines, f"data: {data}", ""]))
    trained = TrainedNetwork.load(runs)
    seen = trained.learned_from(find_input(data)[0])
    assert seen == {"a": ["one", "two"], "b": ["one"], "d": ["two"]}
    # Another cohort may have cases of the same name, as simulated ones do.
    assert trained.learned_from(find_input(elsewhere)[0]) == {}
    shutil.rmtree(data)
    assert trained.learned_from(find_input(elsewhere)[0]) == {"a": ["one", "two"]}
