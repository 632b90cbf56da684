"""Every example runs as a process and says what it did; the new method keeps what all promise."""

import os
import re
import subprocess
import sys

import pytest

from examples.new_method import LossShare
from tests.cggm import (
    contract_hosts,
    contract_runs,
    test_contract,
    test_contract_hosts,
    test_contract_tasks,
)
from tests.cggm.contract import CONTRACTS, Contract
from tests.documents import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MINUTES = ["nnunet_training"]  # of a quiet core
FACTOR = re.compile(r"(\w+) +score (\d\.\d\d)  B (\d\.\d\d)")
TASKS = sorted(contract_runs.TASKS)


@pytest.mark.parametrize(
    "example",
    [pytest.param(p, marks=pytest.mark.slow if p.stem in MINUTES else ()) for p in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_example_runs_and_balances(example, tmp_path):
    if example.stem in MINUTES:
        pytest.importorskip("nnunetv2", reason="needs the extra nnunet: pip install 'cggm[nnunet]'")
    said = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:cggm", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        | {"OMP_WAIT_POLICY": "passive"},  # nnU-Net takes all cores, and idle threads would spin
        capture_output=True,
        text=True,
        check=True,
    )
    lines = FACTOR.findall(said.stdout)
    assert len({name for name, _, _ in lines}) == 2
    strong, weak = lines[-2:]
    assert float(strong[1]) > float(weak[1])
    if example.stem in MINUTES:  # nnU-Net draws other patches in every run, and so are factors
        assert 0 < float(strong[2]) < 2 > float(weak[2]) > 0
    else:
        assert float(strong[2]) < 1 < float(weak[2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(example):
    assert len(example.read_text().splitlines()) < 80


@pytest.fixture
def among_methods(monkeypatch):
    row = Contract({"weight": 0.0}, windows="acts on what is known so far")
    monkeypatch.setitem(CONTRACTS, LossShare.__name__, row)
    return LossShare.__name__  # by which a subclass is found once it is defined


@pytest.mark.parametrize(
    "promise",
    [
        test_contract.test_settings_under_which_it_is_tried_do_act,
        test_contract.test_leaves_no_hook_and_no_key,
        test_contract.test_modalities_that_change_places_take_their_coefficients_along,
        test_contract.test_commits_once_per_window_and_says_whether_windows_equal_batches,
        test_contract.test_evaluation_is_the_task_loss,
        test_contract.test_frozen_encoders_are_refused,
    ],
    ids=lambda promise: promise.__name__,
)
def test_new_method_keeps_the_contract(promise, among_methods):
    promise(among_methods)


@pytest.mark.parametrize("task", TASKS)
def test_new_method_keeps_the_contract_in_every_task(task, among_methods):
    for count in (1, 2, 3, 4):
        test_contract_tasks.test_trains_with_finite_losses(among_methods, task, count)
        test_contract_tasks.test_neutral_setting_is_joint_training(among_methods, task, count)
    test_contract_tasks.test_next_steps_are_the_same_after_a_state_round_trip(among_methods, task)


@pytest.mark.parametrize("host", contract_hosts.HOSTS)
def test_new_method_keeps_the_contract_in_every_host(host, among_methods):
    for accumulation in (1, 2):
        test_contract_hosts.test_trains_like_a_bare_loop(host, accumulation, among_methods)
