import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cggm.errors import UserError
from cggm.runs.config import write_config
from cggm.runs.folder import RunFolder
from cggm.runs.metrics import register_metrics
from cggm.runs.options import RunConfig, describe_method
from cggm.runs.repeats import Repeat, run_repeats
from cggm_cls.metrics import CLASSIFICATION, SENTIMENT

register_metrics(*CLASSIFICATION, *SENTIMENT)
CONFIG = RunConfig(max_epochs=2)


@dataclass
class Recorded:
    """A training that writes what its seed says, or fails."""

    config: RunConfig
    folder: RunFolder
    log: list

    def run(self):
        self.log.append((self.config.seed, self.folder.config.exists()))
        self.folder.make()
        write_config(self.config, self.folder.config)
        if self.config.seed == 99:
            raise KeyboardInterrupt
        test = {"acc": self.config.seed / 10, "corr": None, "confusion": [[1]]}
        result = {"max_epochs": self.config.max_epochs, "simulated": True, "test": test}
        self.folder.results.write_text(json.dumps(result))


def repeats(*seeds, **changes):
    return [Repeat(f"seed-{s}", replace(CONFIG, seed=s, **changes)) for s in seeds]


def run(group, log, wanted):
    run_repeats(group, CONFIG, wanted, lambda c, f: Recorded(c, f, log))


@pytest.fixture
def group(tmp_path: Path):
    return RunFolder(tmp_path / "group")


def test_one_training_has_the_folder_to_itself(group, capsys):
    run(group, [], repeats(3))
    assert group.results.exists()
    assert "results" in capsys.readouterr().out
    assert not (group.path / "summary.json").exists()


def test_summary_has_mean_and_standard_deviation_of_the_sample(group, capsys):
    run(group, [], repeats(1, 2, 6))
    summary = json.loads((group.path / "summary.json").read_text())
    assert summary["runs"] == ["seed-1", "seed-2", "seed-6"]
    assert summary["simulated"]
    assert list(summary["test"]) == ["acc"]
    assert summary["test"]["acc"]["mean"] == pytest.approx(0.3)
    assert summary["test"]["acc"]["sd"] == pytest.approx(0.07**0.5)
    assert "test split (SIMULATED), 3 runs" in capsys.readouterr().out


def test_finished_trainings_are_not_repeated_and_interrupted_ones_resume(group):
    log = []
    with pytest.raises(KeyboardInterrupt):
        run(group, log, repeats(1, 99, 2))
    assert log == [(1, False), (99, False)]
    log.clear()
    with pytest.raises(KeyboardInterrupt):
        run(RunFolder.open(group.path), log, repeats(1, 99, 2))
    assert log == [(99, True)]


def test_more_epochs_continue_a_finished_training(group):
    log = []
    run(group, log, repeats(1))
    run(group, log, repeats(1, max_epochs=2))
    run(group, log, repeats(1, max_epochs=3))
    assert log == [(1, False), (1, True)]


def test_what_does_not_fit_leaves_nothing(group):
    def refuse(config, folder):
        raise UserError("no.", "Fix.")

    with pytest.raises(UserError):
        run_repeats(group, CONFIG, repeats(1, 2), refuse)
    assert not group.path.exists()


def test_a_run_without_its_report_is_not_finished(group):
    log = []
    run(group, log, repeats(1))
    result = json.loads(group.results.read_text())
    group.results.write_text(json.dumps({**result, "finished": False}))
    run(group, log, repeats(1))
    assert log == [(1, False), (1, True)]
    group.results.write_text(json.dumps({**result, "finished": True}))
    run(group, log, repeats(1))
    assert len(log) == 2


def test_cggm_without_its_halves_is_called_joint_training():
    joint = {"rho": None, "direction": None}
    assert describe_method("CGGM", joint) == "joint training (heads report)"
    assert describe_method("CGGM", {"rho": None}) == "CGGM(rho=None)"
    assert describe_method("CGGM", {"rho": 1.3, "lam": 0.2}) == "CGGM(rho=1.3, lam=0.2)"
    assert describe_method("Balancer", {}) == "Balancer()"
