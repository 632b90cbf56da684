"""Every method under two gloo ranks, each with half of every batch, against one process."""

import pytest
import torch
from torch.testing import assert_close

from cggm.methods import method_names
from tests.cggm import contract_worker
from tests.cggm.contract import CONTRACTS
from tests.cggm.contract_runs import make, near
from tests.quantifiers import every, none
from tests.ranks import on_two_ranks

every_method = pytest.mark.parametrize("name", method_names())


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(contract_worker.found_of_rank, tmp_path_factory.mktemp("ranks"))


@every_method
def test_replicas_are_bit_equal(name, ranks):
    first, second = (rank[name] for rank in ranks)
    assert not isinstance(first, str), first
    moved, start = first["network"], make(name).state_dict()
    assert none(torch.equal(moved[key], start[key]) for key in start)
    groups = ("network", "state") if CONTRACTS[name].drawn else ("network", "state", "terms")
    for group in groups:
        assert first[group].keys() == second[group].keys()
        for key, value in first[group].items():
            assert_close(value, second[group][key], rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", contract_worker.ABSENCE)
def test_two_ranks_equal_one_process_where_samples_lack_a_modality(name, ranks):
    whole = contract_worker.run_with_absence(name, 0, 1)
    first, second = (rank["absence"][name] for rank in ranks)
    for group in ("network", "heads"):
        tensors = {k: v for k, v in whole[group].items() if isinstance(v, torch.Tensor)}
        assert near(tensors, first[group])
        assert every(torch.equal(first[group][key], second[group][key]) for key in tensors)
    complete = contract_worker.run(name, 0, 1)
    assert not near(whole["network"], complete["network"])


@every_method
def test_two_ranks_equal_one_process_or_the_row_says_why_not(name, ranks):
    whole = contract_worker.run(name, 0, 1)
    equal = near(ranks[0][name]["network"], whole["network"])
    assert equal == (not CONTRACTS[name].ranks)


def test_ranks_that_draw_apart_equal_one_process_in_the_mean_over_draws(ranks):
    first, second = (rank["draws"] for rank in ranks)
    whole = contract_worker.drawn_losses(0, 1)
    both = (first + second) / 2
    assert not torch.equal(both, whole)
    error = (whole.var() / len(whole) + both.var() / len(both)) ** 0.5
    assert 0 < error < 0.02
    assert (both.mean() - whole.mean()).abs() < 4 * error
