import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from cggm.errors import UserError
from cggm.heads import Heads, linear_heads
from cggm.runs.checkpoints import (
    RunProgress,
    Saver,
    load_checkpoint,
    load_network_weights,
    save_checkpoint,
)
from cggm.runs.checkpoints.files import _sealed, find_checkpoints
from cggm.runs.folder import RunFolder
from cggm.runs.loop.seeds import seed_everything
from cggm.tensors import check_moments

ROOT = Path(__file__).parents[4]
FILES = ["checkpoint.json", "model.safetensors", "training.pt"]


class Training:
    """A small training with everything that has a state."""

    def __init__(self, width: int = 4) -> None:
        seed_everything(0)
        self.network = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 2))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)
        self.balancer = nn.Linear(1, 1)
        self.parts = {
            "optimizer": self.optimizer,
            "scheduler": torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 3]),
            "balancer": self.balancer,
            "scaler": None,
        }

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.network(torch.randn(5, 3)).square().mean().mul(random.random()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.parts["scheduler"].step()
            self.balancer.weight.data += torch.rand(1)

    def save(self, folder: Path, epoch: int, score: float | None = None, **options) -> Path:
        progress = RunProgress(epoch, epoch * 10, score, {"data": "abc"})
        return save_checkpoint(folder, self.network, self.parts, progress, **options)

    def load(self, folder: Path) -> RunProgress:
        return load_checkpoint(folder, self.network, self.parts, {"data": "abc"})

    def numbers(self) -> list[float]:
        modules = (self.network, self.balancer)
        return [x for m in modules for p in m.parameters() for x in p.flatten().tolist()]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = Training()
    whole.step(2)
    whole.save(tmp_path, 1, score=0.5)
    whole.step(3)
    resumed = Training()
    resumed.step(7)
    assert resumed.load(tmp_path) == RunProgress(1, 10, 0.5, {"data": "abc"})
    resumed.step(3)
    assert resumed.numbers() == whole.numbers()
    assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_folder_holds_the_network_alone_beside_the_rest(tmp_path):
    training = Training()
    path = training.save(tmp_path, 7)
    assert path == tmp_path / "epoch-0007-step-00000070"
    assert names(path) == FILES
    assert set(load_file(path / "model.safetensors")) == set(training.network.state_dict())


def test_recent_and_best_checkpoints_are_kept(tmp_path):
    training = Training()
    for epoch, score in enumerate([0.1, 0.9, float("nan"), 0.3, None, 0.2], 1):
        training.save(tmp_path, epoch, score)
    assert names(tmp_path) == [
        "epoch-0002-step-00000020",
        "epoch-0005-step-00000050",
        "epoch-0006-step-00000060",
    ]
    training.save(tmp_path, 10000, 0.95, keep_last=1)
    assert names(tmp_path) == ["epoch-10000-step-00100000"]
    assert training.load(tmp_path).epoch == 10000


def test_inference_takes_the_best_weights_and_resume_the_last(tmp_path):
    training = Training()
    training.save(tmp_path, 1, 0.9)
    best = training.numbers()
    training.step()
    training.save(tmp_path, 2, 0.1)
    other = Training()
    assert load_network_weights(tmp_path, other.network).epoch == 1
    assert other.numbers() == best
    other.load(tmp_path)
    assert other.numbers() == training.numbers()


def test_inference_without_scores_takes_the_last(tmp_path):
    training = Training()
    for epoch in (1, 2):
        training.save(tmp_path, epoch)
    assert load_network_weights(tmp_path, training.network).epoch == 2


def test_names_sort_by_epochs_and_then_by_steps(tmp_path):
    training = Training()
    for progress in ((0, 7), (0, 10), (1, 10), (1, 12)):
        save_checkpoint(tmp_path, training.network, {}, RunProgress(*progress), keep_last=9)
    assert [path.name for path in find_checkpoints(tmp_path)] == names(tmp_path)
    assert load_checkpoint(tmp_path, training.network, {}) == RunProgress(1, 12)


def test_saved_progress_is_not_overwritten_and_leftovers_are_swept(tmp_path):
    training = Training()
    path = training.save(tmp_path, 1, 0.1)
    before = {file: file.read_bytes() for file in path.iterdir()}
    training.step()
    with pytest.raises(FileExistsError, match=r"expected a new or an empty folder.*step-00000010"):
        training.save(tmp_path, 1, 0.2)
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    for leftover in (".draft-epoch-0002-step-00000020", ".old-epoch-0001"):
        (tmp_path / leftover).mkdir()
    training.save(tmp_path, 2, 0.2)
    assert names(tmp_path) == ["epoch-0001-step-00000010", "epoch-0002-step-00000020"]


def test_restoring_removes_what_a_kill_left_after_saving(tmp_path):
    training, run = Training(), RunFolder.create(tmp_path / "run", name="x")
    fingerprint = {"data": "1"}
    for epoch in (1, 2, 3):
        progress = RunProgress(epoch, 10 * epoch, fingerprint=fingerprint)
        save_checkpoint(run.checkpoints, training.network, {}, progress, keep_last=9)
    (run.checkpoints / ".draft-epoch-0004-step-00000040").mkdir()
    saver = Saver(
        run, training.network, {}, lambda: None, fingerprint=fingerprint, keep_last=1, minutes=1
    )
    assert saver.restore().epoch == 3
    assert names(run.checkpoints) == ["epoch-0003-step-00000030"]


def test_what_is_held_is_saved_as_it_was_unless_something_newer_is_there(tmp_path):
    training, run = Training(), RunFolder.create(tmp_path / "run", name="x")
    training.step()
    saver = Saver(
        run, training.network, training.parts, lambda: None, fingerprint={}, keep_last=9, minutes=1
    )
    saver.save(1, 10)
    saver.hold(1, 12)
    held = training.numbers()
    training.step()
    assert saver.save_held() == saver.progress.iteration == 12
    assert names(run.checkpoints) == ["epoch-0001-step-00000010", "epoch-0001-step-00000012"]
    saver.restore()
    assert training.numbers() == held
    saver.hold(1, 13)
    saver.save(1, 14)
    assert saver.save_held() == 14
    assert names(run.checkpoints)[-1] == "epoch-0001-step-00000014"


KILLED = """
import os, shutil, sys
from pathlib import Path
from torch import nn
from cggm.runs.checkpoints import RunProgress, save_checkpoint

left = int(sys.argv[1])

def audit(event, args):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir", "open"):
        if any("checkpoints" in str(arg) for arg in args):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)

folder = Path("checkpoints")
save_checkpoint(folder, nn.Linear(2, 2), {}, RunProgress(1, 10))
sys.addaudithook(audit)
save_checkpoint(folder, nn.Linear(2, 2), {}, RunProgress(1, 15), keep_last=1)
print(left)
"""


def test_process_killed_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path):
    for number in range(1, 100):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        pid = os.fork()
        if pid == 0:
            run_killed(tmp_path, number)
        _, status = os.waitpid(pid, 0)
        iteration = load_network_weights(tmp_path / "checkpoints", nn.Linear(2, 2)).iteration
        assert iteration in (10, 15)
        if os.WIFEXITED(status):
            break
    assert os.waitstatus_to_exitcode(status) == 0
    assert (number > 10, iteration) == (True, 15)


def run_killed(folder: Path, number: int) -> None:
    os.chdir(folder)
    sys.argv = ["", str(number)]
    try:
        exec(KILLED, {})
    finally:
        os._exit(sys.exc_info()[0] is not None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    Training().save(folder, 1)
    return folder


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_refused_and_changes_nothing(saved, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copytree(saved / "epoch-0001-step-00000010", folder / "epoch-0001-step-00000010")
    file = folder / "epoch-0001-step-00000010" / name
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    training = Training()
    before = training.numbers()
    with pytest.raises(UserError, match="damaged checkpoint"):
        training.load(folder)
    assert training.numbers() == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["truncated", "empty", "missing"])
def test_incomplete_checkpoint_is_refused_with_a_remedy(tmp_path, name, how):
    training = Training()
    training.save(tmp_path, 1)
    file = training.save(tmp_path, 2) / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 if how == "truncated" else 0])
    if how == "missing":
        file.unlink()
    with pytest.raises(UserError) as caught:
        training.load(tmp_path)
    assert str(file) in str(caught.value)
    assert f"Delete {tmp_path / 'epoch-0002'}" in str(caught.value)
    assert "continues from epoch-0001-step-00000010" in str(caught.value)


def test_damaged_older_checkpoint_does_not_stop_a_training(tmp_path):
    training = Training()
    (training.save(tmp_path, 1, 0.9) / "checkpoint.json").write_text("{")
    training.save(tmp_path, 2, 0.1)
    training.save(tmp_path, 3, 0.2)
    assert names(tmp_path) == ["epoch-0002-step-00000020", "epoch-0003-step-00000030"]


def test_weights_of_another_network_are_refused_by_name_and_shape(tmp_path):
    Training(4).save(tmp_path, 1)
    wide = Training(8)
    for load in (wide.load, lambda folder: load_network_weights(folder, wide.network)):
        with pytest.raises(UserError) as caught:
            load(tmp_path)
        assert "0.weight is (4, 3) in the file and (8, 3) in the network" in str(caught.value)
        assert "(3 differ)" in str(caught.value)
    with pytest.raises(UserError, match=r"0\.bias is \(4,\) in the file and absent"):
        load_network_weights(tmp_path, nn.Module())


def test_another_run_is_refused(tmp_path):
    training = Training()
    training.save(tmp_path, 1)
    with pytest.raises(UserError, match="differs in its data"):
        load_checkpoint(tmp_path, training.network, training.parts, {"data": "xyz"})
    parts = {**training.parts, "balancer": None, "scaler": training.balancer}
    with pytest.raises(UserError, match="differs in its balancer and scaler"):
        load_checkpoint(tmp_path, training.network, parts)
    parts = {**training.parts, "balancer": nn.Linear(2, 2)}
    with pytest.raises(UserError, match="saved balancer does not fit"):
        load_checkpoint(tmp_path, training.network, parts)


def rewrite_header(path: Path, change) -> None:
    header = json.loads((path / "checkpoint.json").read_text())
    del header["digest"]
    change(header)
    (path / "checkpoint.json").write_bytes(_sealed(header))


def test_another_format_is_refused_and_other_versions_are_said(tmp_path, capsys):
    training = Training()
    path = training.save(tmp_path, 1)
    rewrite_header(path, lambda header: header["versions"].update(torch="1.0"))
    training.load(tmp_path)
    assert capsys.readouterr().err == (
        f"{path} was written by torch 1.0, now {version('torch')}: numbers may differ from here "
        "on.\n"
    )
    rewrite_header(path, lambda header: header.update(format=3))
    with pytest.raises(UserError, match="expected a checkpoint of format 2, but it has 3"):
        training.load(tmp_path)
    rewrite_header(path, lambda header: header.pop("format"))
    path.rename(tmp_path / "epoch-0001")  # as the first format named it
    with pytest.raises(UserError, match="expected a checkpoint of format 2, but it has none"):
        training.load(tmp_path)


@pytest.mark.parametrize("rules", [None, "1", "3"])
def test_a_version_of_other_rules_cannot_go_on_but_its_network_is_read(tmp_path, rules):
    training = Training()
    path = training.save(tmp_path, 1)
    rewrite_header(path, lambda header: header["versions"].pop("rules"))
    if rules:
        rewrite_header(path, lambda header: header["versions"].update(rules=rules))
    with pytest.raises(UserError, match=rf"rules {rules or 1}; this one has 2.*start a new run"):
        training.load(tmp_path)
    assert load_network_weights(tmp_path, training.network).epoch == 1


def test_another_number_of_processes_is_refused(tmp_path):
    training = Training()
    path = training.save(tmp_path, 1)
    rewrite_header(path, lambda header: header.update(world_size=2))
    with pytest.raises(UserError, match="differs in its number of processes"):
        training.load(tmp_path)
    assert load_network_weights(tmp_path, training.network).epoch == 1


class Gadget:
    """Runs a command when an ordinary loader reads it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_with_a_matching_digest_is_refused_and_never_run(tmp_path, legacy):
    training = Training()
    path = training.save(tmp_path, 1)
    ran, file = tmp_path / "ran", path / "training.pt"
    hostile = {"parts": {}, "rng": Gadget(f"touch {ran}")}
    torch.save(hostile, file, _use_new_zipfile_serialization=not legacy)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rewrite_header(path, lambda header: header["files"].update({"training.pt": digest}))
    for load in (
        lambda: training.load(tmp_path),
        lambda: load_network_weights(tmp_path, training.network, {"balancer": training.balancer}),
    ):
        with pytest.raises(UserError, match=r"training\.pt: damaged checkpoint, it holds more"):
            load()
    assert not ran.exists()
    torch.load(file, weights_only=False)
    assert ran.exists(), "the gadget is none"


JUNK = (None, 5, "x", [1], {}, torch.zeros(3))


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize("place", ["rng", "python", "numpy", "torch", "optimizer", "balancer"])
def test_states_of_another_form_are_refused(tmp_path, place, junk):
    training = Training()
    training.step()
    path = training.save(tmp_path, 1)

    def forge(saved):
        next(g for g in (saved, saved["rng"], saved["parts"]) if place in g)[place] = junk

    rewrite_training(path, forge)
    with pytest.raises(UserError, match=r"no states of random generators|does not fit this run"):
        training.load(tmp_path)


@pytest.mark.parametrize("junk", [torch.zeros(7), torch.zeros(()), "x", [1.0]], ids=repr)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_moments_of_another_form_are_refused_at_once(tmp_path, name, junk):
    training = Training()
    training.step()
    path = training.save(tmp_path, 1)
    rewrite_training(
        path, lambda saved: saved["parts"]["optimizer"]["state"][0].update({name: junk})
    )
    with pytest.raises(UserError, match=rf"saved optimizer does not fit this run \({name} is "):
        training.load(tmp_path)


def test_moments_of_heads_are_looked_at_and_optimizers_of_others_are_not():
    made = linear_heads(nn.Linear(4, 2), {"text": 2, "audio": 2})
    heads = Heads(made, partial(torch.optim.Adam, lr=0.1))
    for parameter in heads.parameters():
        parameter.grad = torch.ones_like(parameter)
    heads.optimizer.step()
    state = heads.get_extra_state()
    heads.set_extra_state(state)
    state["state"][0]["exp_avg_sq"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"exp_avg_sq is \(3,\) for a parameter "):
        heads.set_extra_state(state)

    class Factored(torch.optim.Adam):
        """Keeps second moments by rows."""

    parameter = nn.Parameter(torch.zeros(2, 2))
    for kind in (Factored, torch.optim.Adam):
        optimizer = kind([parameter])
        optimizer.state[parameter]["exp_avg_sq"] = torch.zeros(2)
        if kind is Factored:
            check_moments(optimizer)
        else:
            with pytest.raises(ValueError, match="exp_avg_sq is"):
                check_moments(optimizer)
    optimizer.state[parameter] = None  # of a parameter that another rank updates
    check_moments(optimizer)


def test_a_momentum_that_was_never_written_is_taken_over(tmp_path):
    training = Training()
    training.optimizer = torch.optim.SGD(training.network.parameters(), 0.1, momentum=0.9)
    training.parts = {"optimizer": training.optimizer}
    training.network(torch.randn(5, 3)).sum().backward()
    training.optimizer.step()
    path = training.save(tmp_path, 1)
    rewrite_training(
        path,
        lambda saved: saved["parts"]["optimizer"]["state"][0].update({"momentum_buffer": None}),
    )
    training.load(tmp_path)
    assert None in [state["momentum_buffer"] for state in training.optimizer.state.values()]


def rewrite_training(path, change):
    """What whoever replaces the file and its digest can do."""
    file = path / "training.pt"
    saved = torch.load(file, weights_only=True)
    change(saved)
    torch.save(saved, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rewrite_header(path, lambda header: header["files"].update({"training.pt": digest}))


def test_folder_without_checkpoints_is_refused(tmp_path):
    (tmp_path / "epoch-notes.txt").touch()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no checkpoint"):
            load_network_weights(folder, nn.Linear(1, 1))


def test_wrappers_leave_no_trace_in_the_file(tmp_path):
    training = Training()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.compile(nn.parallel.DistributedDataParallel(training.network))
        save_checkpoint(tmp_path / "c", wrapped, {}, RunProgress(1, 1))
        plain = Training()
        plain.step()
        load_network_weights(tmp_path / "c", plain.network)
        assert plain.numbers()[:-2] == training.numbers()[:-2]
        load_checkpoint(tmp_path / "c", wrapped, {})
    finally:
        torch.distributed.destroy_process_group()


def test_tied_and_channels_last_weights_survive(tmp_path):
    network = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    network = network.to(memory_format=torch.channels_last)
    network[1].weight = network[0].weight
    save_checkpoint(tmp_path, network, {}, RunProgress(1, 1))
    expected = network[0].weight.detach().clone()
    nn.init.zeros_(network[0].weight)
    load_network_weights(tmp_path, network)
    assert torch.equal(network[1].weight, expected)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from torch import nn
from cggm.runs.checkpoints import RunProgress, save_checkpoint
from cggm.runs.cli import run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
network = nn.Linear(20, 20)
parts = {"balancer": nn.Linear(100, 100)}

def main(argv):
    for epoch, limit in zip(map(int, argv[::2]), argv[1::2]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        save_checkpoint(Path("checkpoints"), network, parts, RunProgress(epoch, epoch))

print(run(main, ["1", "1000000", "2", "1000"]))
print(run(main, ["2", "30000"]))
"""


def test_full_disk_names_the_file_and_leaves_the_last_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["2", "2"]
    for message, name in zip(
        done.stderr.splitlines(), ["model.safetensors", "training.pt"], strict=True
    ):
        assert message.startswith("error: ")
        assert name in message
    assert names(tmp_path / "checkpoints") == ["epoch-0001-step-00000001"]
    assert load_network_weights(tmp_path / "checkpoints", nn.Linear(20, 20)).epoch == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"progress": []}, "expected progress to be an object"),
        ({"world_size": "1"}, "expected world_size to be a number"),
        ({"files": {"model.safetensors": 1}}, "to be a text"),
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path, change, problem):
    training = Training()
    path = training.save(tmp_path, 1)
    rewrite_header(path, lambda header: header.update(change))
    with pytest.raises(UserError, match=problem):
        training.load(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"digest": ' + "9" * 5000 + "}"])
def test_a_hostile_header_is_damaged(tmp_path, content):
    training = Training()
    path = training.save(tmp_path, 1)
    (path / "checkpoint.json").write_text(content)
    with pytest.raises(UserError, match="damaged checkpoint"):
        training.load(tmp_path)


def test_weights_that_are_not_finite_are_no_network_to_predict_with(tmp_path):
    training = Training()
    next(training.network.parameters()).data[0] = torch.nan
    training.save(tmp_path, 1)
    with pytest.raises(UserError, match=r"weights are not finite, NaN .* in .* 1 tensors"):
        load_network_weights(tmp_path, Training().network)
