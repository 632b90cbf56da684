"""nnU-Net's wrappers around the network: DDP on two ranks, and torch.compile."""

import functools

import pytest
import torch

pytest.importorskip("nnunetv2", reason="needs the extra nnunet: pip install 'cggm[nnunet]'")

from cggm_nnunet import nnUNetTrainerCGGM, nnUNetTrainerJoint
from tests.cggm_nnunet.ddp_worker import SIDES, found_of_rank, train
from tests.cggm_nnunet.plans import batch, make_trainer
from tests.ranks import on_two_ranks

pytestmark = pytest.mark.slow


def test_two_ranks_train_alike_and_like_one_on_the_whole_batch(tmp_path):
    ranks = on_two_ranks(found_of_rank, tmp_path, timeout=600)
    for side in SIDES:
        first, second = (rank[side] for rank in ranks)
        assert first.keys() == second.keys()
        weights = {key for key in first if not key.startswith("reading")}
        coefficients = {"reading term", "reading score"} if side != "chain" else set()
        for key in weights | (coefficients & {*first}):
            assert torch.equal(first[key], second[key]), (side, key)
        if side in ("joint", "magnitude"):
            whole = train(tmp_path / side, side, 0, 1)
            for key in weights | (coefficients & {*first}):
                assert torch.allclose(first[key], whole[key], atol=1e-4), (side, key)


@pytest.mark.parametrize("kind", [nnUNetTrainerJoint, nnUNetTrainerCGGM])
def test_a_compiled_network_trains_like_an_eager_one(tmp_path, monkeypatch, kind):
    def trained(folder, compiled):
        with monkeypatch.context() as patch:
            patch.setattr(kind, "_do_i_compile", lambda self: compiled)
            traced = functools.partial(torch.compile, backend="aot_eager")
            patch.setattr(torch, "compile", traced)
            trainer = make_trainer(kind, folder, axes=2)
            trainer.network.train()
            trainer.balancing.balancer.start_epoch(1)
            for number in range(3):
                trainer.train_step(batch(number, axes=2))
        assert hasattr(trainer.network, "_orig_mod") == compiled
        network = getattr(trainer.network, "_orig_mod", trainer.network)
        return {**network.state_dict(), **trainer.balancing.balancer.readings}

    eager, compiled = (trained(tmp_path / str(c), c) for c in (False, True))
    for key, value in eager.items():
        assert torch.allclose(compiled[key], value, atol=1e-4), key
