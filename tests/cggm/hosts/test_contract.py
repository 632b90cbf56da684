"""Every method in Lightning, under Accelerate and in HF's Trainer: all that a bare loop gives."""

from functools import cache

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: pip install lightning")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
pytest.importorskip("transformers", reason="needs transformers: pip install 'cggm[features]'")

from cggm.methods import method_names
from tests.cggm.contract_hosts import bare_loop
from tests.cggm.hosts.trainers import (
    accelerate_loop,
    hugging_face,
    lightning_automatic,
    lightning_manual,
    torch_state,
)

expected = cache(bare_loop)


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("host", [lightning_automatic, accelerate_loop, hugging_face])
def test_trains_like_a_bare_loop_bit_for_bit(host, accumulation, name):
    _compare(host, accumulation, name)


@pytest.mark.parametrize("name", ["CGGM", "OGM", "Greedy", "ModalityDropout"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_manual_optimization_does_so_too(accumulation, name):
    _compare(lightning_manual, accumulation, name)


def _compare(host, accumulation, name):
    found = torch_state(host(name, accumulation))
    wanted = torch_state(expected(name, accumulation))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(torch.nan_to_num(found[key]), torch.nan_to_num(value)), key
