"""Methods by name: a method of one's own trains through a pipeline's own path, without any list."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import cggm.methods
from cggm import Balancer
from cggm.errors import MethodRefusal, UserError
from cggm.methods import bound_balancer, build_balancer, find_method, method_names
from cggm.runs import parse_training
from pipelines.mosi_train import MosiConfig
from tests.cggm.networks import accuracy, make_late

ROOT = Path(__file__).parents[3]
TOY = '''
import torch
from cggm import Balancer

class Halving(Balancer):
    """Halves every encoder's gradient."""

    def __init__(self, task_loss, *, factor=0.5):
        super().__init__(task_loss)
        self.factor = factor

    def loss(self, step):
        self.readings = {"term": step.loss.new_full((len(self.binding.names),), self.factor)}
        return step.loss

    def scales(self, step):
        return self.readings["term"]
'''


def test_a_method_of_ones_own_trains_by_its_name(tmp_path):
    (tmp_path / "toy_methods.py").write_text(TOY)
    settings = {"balancer": {"name": "toy_methods.Halving", "settings": {"factor": 0.25}}}
    (tmp_path / "toy.yaml").write_text(json.dumps(settings))
    command = [sys.executable, ROOT / "pipelines" / "mosi_train.py", "--config", "toy.yaml"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [*command, "--max_epochs", "1", "--output", "run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/balance.jsonl").read_text().splitlines()]
    assert set(rows[-1]["term"].values()) == {0.25}


@pytest.mark.parametrize("told", [(), ("--balancer.name", "Balancer"), ("--method", "cggm")])
def test_a_run_that_is_resumed_imports_nothing_unless_told(tmp_path, monkeypatch, told):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{TOY}X = Halving")
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    (run / "checkpoints" / "epoch-0001-step-00000001").mkdir(parents=True)
    (run / "config.yaml").write_text("max_epochs: 1\nbalancer: {name: evil.X}\n")
    with pytest.raises(UserError, match=r"say so: --balancer\.name evil\.X"):
        parse_training(MosiConfig, None, ["--resume", str(run), *told], ROOT / "configs" / "mosi")
    assert not (tmp_path / "ran").exists()
    told = ["--resume", str(run), "--balancer.name", "evil.X"]
    config, _ = parse_training(MosiConfig, None, told, ROOT / "configs" / "mosi")
    assert find_method(config.balancer.name).__name__ == "Halving"


def test_a_file_of_the_folder_is_found_without_a_list():
    files = {file.stem for file in Path(cggm.methods.__file__).parent.glob("[!_]*.py")}
    modules = {find_method(name).__module__.rpartition(".")[2] for name in method_names()}
    assert modules == files - {"registry"} | {"balancer"}
    assert cggm.methods.OGM is find_method("OGM")
    assert set(method_names()) <= set(dir(cggm.methods))
    with pytest.raises(AttributeError):
        _ = cggm.methods.Missing


def test_a_subclass_defined_anywhere_is_found_by_its_name():
    class Defined(Balancer):
        pass

    found = build_balancer("Defined", {}, {"task_loss": nn.CrossEntropyLoss})
    assert type(found) is Defined
    network, _ = make_late()
    assert found.bind(network).bound


def test_a_setting_that_is_misspelt_is_answered_with_the_nearest():
    parts = {"task_loss": nn.functional.cross_entropy, "heads": {}, "score": accuracy}
    with pytest.raises(UserError, match=r"Unknown setting 'direktion' of CGGM.*mean direction\?"):
        build_balancer("CGGM", {"direktion": None}, parts)
    with pytest.raises(UserError, match=r"Unknown setting 'q' of CGGM.*Known: .*rho"):
        build_balancer("CGGM", {"q": None}, parts)


def test_names_that_mean_several_or_no_method_are_refused():
    def define():
        class Twice(Balancer):
            pass

        return Twice

    kept = [define(), define()]
    with pytest.raises(UserError, match="one method 'Twice', but found"):
        find_method("Twice")
    with pytest.raises(UserError, match=r"Unknown method 'CGM'.*CGGM.*package\.module\.Class"):
        find_method("CGM")
    with pytest.raises(UserError, match=r"can be imported.*PYTHONPATH"):
        find_method("no_such_package.Method")
    with pytest.raises(UserError, match=r"subclass of cggm\.Balancer"):
        find_method("torch.nn.Linear")
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("name", "follow"),
    [
        ("UnimodalLosses", [True]),
        ("RedCore", [True]),
        ("GuidedHeads", [True]),
        ("CGGM", [False]),
        ("CGGM+UnimodalLosses", [True, True]),  # whose heads are the same
        ("CGGM+OGM", [False, False]),
    ],
)
def test_heads_that_the_network_learns_from_learn_at_its_rate(name, follow):
    network, heads = make_late()
    parts = {
        "task_loss": nn.CrossEntropyLoss,
        "heads": lambda: heads,
        "score": lambda: accuracy,
        "samples": lambda: 16,
    }
    balancer = bound_balancer(name, {}, parts, network)
    methods = balancer.parts if "+" in name else [balancer]
    assert [method.heads_follow for method in methods] == follow


def test_a_method_that_cannot_serve_the_network_is_told_by_its_kind_of_error():
    parts = {"task_loss": lambda: nn.CrossEntropyLoss()}
    with pytest.raises(MethodRefusal, match=r"UnimodalEnsemble cannot be used here: .*LateFusion"):
        bound_balancer("UnimodalEnsemble", {}, parts, make_late()[0])


def test_a_setting_that_a_method_cannot_do_without_is_asked_for():
    parts = {"task_loss": lambda: nn.CrossEntropyLoss()}
    with pytest.raises(UserError, match=r"expected `samples`.*Give `samples`, or take another"):
        build_balancer("QMF", {}, parts)
