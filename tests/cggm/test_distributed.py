"""Two real processes over gloo against one."""

import pytest
import torch
from torch.testing import assert_close

from cggm.distributed import mean_over_ranks, sum_over_ranks, world_size
from tests.cggm import ddp_worker
from tests.quantifiers import every
from tests.ranks import on_two_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(ddp_worker.found_of_rank, tmp_path_factory.mktemp("ddp"))


def test_replicas_are_bit_equal_after_50_steps(ranks):
    for group in ("network", "cggm"):
        for key, value in ranks[0][group].items():
            assert torch.equal(value, ranks[1][group][key]), key
    assert torch.equal(ranks[0]["terms"], ranks[1]["terms"])


def test_two_ranks_on_halves_equal_one_process_on_the_whole(ranks):
    whole = ddp_worker.train(0, 1)
    assert whole["terms"].std(dim=0).min() > 0.01
    assert_close(ranks[0]["terms"], whole["terms"], rtol=1e-5, atol=1e-5)
    for group in ("network", "cggm"):
        for key, value in whole[group].items():
            assert_close(ranks[0][group][key], value, rtol=1e-5, atol=1e-5, msg=key)


def test_guided_heads_on_two_ranks_equal_one_process_in_expectation(ranks):
    two = ranks[0]["guided"]
    assert torch.equal(two, ranks[1]["guided"])
    one = ddp_worker.guided_gradients(0, 1, range(ddp_worker.DRAWS, 2 * ddp_worker.DRAWS))
    assert two.std(0).max() > 0.01
    error = ((two.var(0) + one.var(0)) / ddp_worker.DRAWS).sqrt()
    apart = (two.mean(0) - one.mean(0)).abs()
    # 5 standard errors: by chance one time in a thousand for some of the network's parameters
    assert (apart <= 5 * error + 1e-6).all()
    assert (apart[error > 0] / error[error > 0]).pow(2).mean() < 2.0  # 1 where means are equal


def test_one_process_is_left_alone():
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor(3.0)]
    assert world_size() == 1
    assert every(a is b for a, b in zip(sum_over_ranks(tensors), tensors, strict=True))
    assert every(a is b for a, b in zip(mean_over_ranks(tensors), tensors, strict=True))
