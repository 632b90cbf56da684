"""Every method on every kind of task with one to four modalities."""

import copy
import io
from functools import cache

import pytest
import torch

from cggm.methods import method_names
from tests.cggm.contract import CONTRACTS
from tests.cggm.contract_runs import (
    EPOCHS,
    TASKS,
    acting,
    batches_of,
    make,
    names_of,
    neutral,
    same,
    train,
)
from tests.quantifiers import every, none

SERVED = [(n, t) for n in method_names() for t in TASKS if t not in CONTRACTS[n].refuses]
REFUSED = [(n, t) for n in method_names() for t in CONTRACTS[n].refuses]
every_count = pytest.mark.parametrize("count", [1, 2, 3, 4])
served = pytest.mark.parametrize(("name", "task"), SERVED)


@served
@every_count
def test_trains_with_finite_losses(name, task, count):
    names = names_of(count)
    network = make(name, task, names)
    before = copy.deepcopy(network.state_dict())
    # an epoch each, so that every modality has its turn
    epochs = range(1, max(count, 2) + 1)
    batches = batches_of(task, names, len(epochs))
    balancer = acting(name, network, task)
    heads = copy.deepcopy(balancer.heads)
    rows = train(network, balancer, batches, epochs=epochs)
    assert every(row["loss"].ndim == 0 and row["loss"].isfinite() for row in rows)
    assert every(row[key].isfinite().all() for row in rows for key in row if key != "ratio")
    assert none(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    if balancer.heads is not None:
        learned = zip(heads.parameters(), balancer.heads.parameters(), strict=True)
        assert none(torch.equal(start, end) for start, end in learned)


@cache
def joint_training(task, count, rule, gated):
    kinds = {n: (CONTRACTS[n].rules.get(task), CONTRACTS[n].gated) for n in method_names()}
    name = next(n for n, kind in kinds.items() if kind == (rule, gated))
    names = names_of(count)
    network = make(name, task, names)
    train(network, TASKS[task].loss, batches_of(task, names, 2))
    return network


@served
@every_count
def test_neutral_setting_is_joint_training(name, task, count):
    names = names_of(count)
    network = make(name, task, names)
    train(network, neutral(name, network, task), batches_of(task, names, 2), epochs=(1, 2))
    contract = CONTRACTS[name]
    assert same(network, joint_training(task, count, contract.rules.get(task), contract.gated))


@served
def test_next_steps_are_the_same_after_a_state_round_trip(name, task):
    network = make(name, task)
    balancer = acting(name, network, task)
    batches = batches_of(task)
    train(network, balancer, batches[:3])
    file = io.BytesIO()
    torch.save([network.state_dict(), balancer.state_dict()], file)
    rest = {"epochs": EPOCHS[3:], "announced": EPOCHS[2]}
    whole = train(network, balancer, batches[3:], **rest)
    file.seek(0)
    again = make(name, task, seed=5)
    resumed = acting(name, again, task)
    for part, state in zip((again, resumed), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    # as a resumed engine does, the epoch under way is announced once more
    rows = train(again, resumed, batches[3:], epochs=EPOCHS[3:])
    for row, expected in zip(rows, whole, strict=True):
        # a reading taken when the optimizer stepped is a report of that step, and no state
        assert {"loss"} <= row.keys() <= expected.keys()
        assert every(torch.equal(row[key], expected[key]) for key in row)
    assert same(again, network)


@pytest.mark.parametrize(("name", "task"), REFUSED)
def test_a_task_that_it_cannot_serve_is_refused(name, task):
    network = make(name, task)
    with pytest.raises(ValueError, match=CONTRACTS[name].refuses[task]):
        train(network, acting(name, network, task), batches_of(task))
