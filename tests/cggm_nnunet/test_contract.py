"""Every method in nnU-Net's own step: the weights and coefficients of a bare loop; checkpoints."""

import pytest
import torch

pytest.importorskip("nnunetv2", reason="needs the extra nnunet: pip install 'cggm[nnunet]'")

from cggm.errors import UserError
from cggm.methods import method_names
from cggm_nnunet import nnUNetTrainerJoint, nnUNetTrainerMRDUnimodalLosses
from tests.cggm_nnunet.plans import batch, make_trainer

REFUSED = {
    "G2D": "Expected `heads` and `trials`",
    "GradientBlending": "Expected `trials`",
    "Greedy": "Expected `bypass`",
    "MLA": "Expected a late-fusion network",
    "PMR": "Expected a linear output layer",
    "QMF": "expected `samples`, which it cannot do without",
    "ReconBoost": "Expected a late-fusion network",
    "Relearning": "Expected `trials`",
    "UnimodalEnsemble": "Expected a late-fusion network",
    "UnimodalTeacher": "Expected `teachers`",
}
SINGLE = ["AGM", "PASSION"]  # which need one prediction, where deep supervision gives several
SERVED = [name for name in method_names() if name not in [*SINGLE, *REFUSED]]


def started(name, folder):
    kind = type("nnUNetTrainerOwn", (nnUNetTrainerJoint,), {"method": name})
    if "+" in name:
        kind = nnUNetTrainerMRDUnimodalLosses
    trainer = make_trainer(kind, folder, axes=2)
    trainer.network.train()
    trainer.balancing.balancer.start_epoch(1)
    return trainer


def bare_step(network, optimizer, balancer, sample):
    """What nnU-Net's step is without nnU-Net."""
    optimizer.zero_grad()
    balancer(network(sample["data"]), tuple(sample["target"])).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()


def compare(network, balancer, twin):
    for key, value in network.state_dict().items():
        assert torch.equal(value, twin.network.state_dict()[key]), key
    readings = twin.balancing.balancer.readings
    assert balancer.readings.keys() == readings.keys()
    for key, value in balancer.readings.items():
        assert torch.equal(value, readings[key]), key


@pytest.mark.parametrize("name", [*SERVED, nnUNetTrainerMRDUnimodalLosses.method])
def test_steps_are_those_of_a_bare_loop_bit_for_bit(tmp_path, name):
    trainer, bare = (started(name, tmp_path / part) for part in ("host", "bare"))
    network, balancer = bare.network, bare.balancing.balancer
    for number in range(3):
        trainer.train_step(batch(number, axes=2))
        bare_step(network, bare.optimizer, balancer, batch(number, axes=2))
    compare(network, balancer, trainer)


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_need_more_than_nnunet_has_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=REFUSED[name]):
        started(name, tmp_path)


@pytest.mark.parametrize("name", SINGLE)
def test_methods_that_need_one_prediction_are_refused_in_the_first_step(tmp_path, name):
    trainer = started(name, tmp_path)
    with pytest.raises(ValueError, match=f"return one tensor, because {name} compares"):
        trainer.train_step(batch(0, axes=2))


@pytest.mark.parametrize("direction", ["out of nnU-Net", "into nnU-Net"])
def test_the_state_goes_on_in_another_host(tmp_path, direction):
    straight, first = (started("CGGM", tmp_path / part) for part in ("straight", "first"))
    for number in range(4):
        straight.train_step(batch(number, axes=2))
    for number in range(2):
        first.train_step(batch(number, axes=2))
    file = tmp_path / "checkpoint_latest.pth"
    first.save_checkpoint(str(file))
    state = torch.load(tmp_path / "checkpoint_latest.balance_00001.pt", weights_only=True)
    weights, optimizer = first.network.state_dict(), first.optimizer.state_dict()
    second = started("CGGM", tmp_path / "second")
    second.network.load_state_dict(weights)
    second.optimizer.load_state_dict(optimizer)
    balancer = second.balancing.balancer
    balancer.load_state_dict(state["balancer"])
    for number in range(2, 4):
        if direction == "into nnU-Net":
            second.train_step(batch(number, axes=2))
        else:
            bare_step(second.network, second.optimizer, balancer, batch(number, axes=2))
    compare(second.network, balancer, straight)
