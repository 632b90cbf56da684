"""Every method in Lightning, under Accelerate and in HF's Trainer: all that a bare loop gives."""

from functools import cache

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: pip install lightning")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
pytest.importorskip("transformers", reason="needs transformers: pip install 'cggm[features]'")

from cggm.methods import method_names
from cggm.tensors import map_tensors
from tests.cggm.contract_hosts import EPOCHS, Session, bare_loop, positions
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


@pytest.fixture
def precision():
    """Makes Accelerate forget, before and after, the precision that a process has once."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", ["AGM", "CGGM", "GuidedHeads", "OGM", "UnimodalEnsemble"])
@pytest.mark.parametrize(
    ("host", "options"),
    [(accelerate_loop, {"mixed_precision": "bf16"}), (hugging_face, {"bf16": True})],
)
def test_half_precision_around_the_network_alone_does_so_too(host, options, name, precision):
    session = Session(name)
    session.balancer.bind(session.network)
    for epoch in range(1, EPOCHS + 1):
        session.balancer.start_epoch(epoch)
        for batch in session.batches:
            session.balancer.identify(positions(batch))
            session.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                prediction = session.network(batch[0])
            session.balancer(map_tensors(torch.Tensor.float, prediction), batch[1]).backward()
            session.optimizer.step()
        session.balancer.end_epoch(epoch)
    _equal(torch_state(host(name, 1, **options)), torch_state(session))


def _compare(host, accumulation, name):
    _equal(torch_state(host(name, accumulation)), torch_state(expected(name, accumulation)))


def _equal(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(torch.nan_to_num(found[key]), torch.nan_to_num(value)), key
