"""Trainers: one step against joint training, checkpoints, resuming, absent channels, settings."""

import copy
import json

import pytest
import torch

pytest.importorskip("nnunetv2", reason="needs the extra nnunet: pip install 'cggm[nnunet]'")

from cggm.errors import UserError
from cggm_nnunet.settings import channel_names
from cggm_nnunet.trainer import (
    KeepConstant,
    nnUNetTrainerCGGM,
    nnUNetTrainerJoint,
    nnUNetTrainerMRD,
    nnUNetTrainerMRDUnimodalLosses,
    nnUNetTrainerUnimodalLosses,
)
from tests.cggm_nnunet.plans import NAMES, batch, make_trainer
from tests.quantifiers import every

TRAINERS = [
    nnUNetTrainerJoint,
    nnUNetTrainerCGGM,
    nnUNetTrainerMRD,
    nnUNetTrainerUnimodalLosses,
    nnUNetTrainerMRDUnimodalLosses,
]
MAGNITUDE = "settings: {direction: null, gate: null, rho: 1.0}"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "CGGM_NNUNET"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
    monkeypatch.delenv("CGGM_NNUNET")


def start(trainer):
    trainer.network.train()
    trainer.balancing.balancer.start_epoch(1)
    return trainer


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("axes", [2, 3])
def test_one_step_moves_each_encoder_by_its_term_times_the_joint_step(
    tmp_path, residual, regions, axes
):
    # in double precision: what float32 parameters moved by is known to few digits alone
    kind = {"residual": residual, "regions": regions, "axes": axes}
    joint = start(make_trainer(nnUNetTrainerJoint, tmp_path, **kind))
    ours = start(make_trainer(nnUNetTrainerCGGM, tmp_path, settings=MAGNITUDE, **kind))
    joint.network.double(), ours.network.double()
    scores = ours.balancing.balancer.scores
    scores.fast.copy_(torch.tensor([0.01, 0.03, 0.02]))  # so that gains differ
    scores.slow.copy_(torch.tensor([0.002, 0.001, 0.004]))
    scores.steps.fill_(5.0)
    before = copy.deepcopy(joint.network.state_dict())
    for key, value in ours.network.state_dict().items():
        assert torch.equal(value, before[key]), key
    moved = {}
    for trainer in (joint, ours):
        trainer.optimizer.param_groups[0]["weight_decay"] = 0.0  # which nothing scales
        sample = batch(1, regions=regions, axes=axes)
        trainer.train_step(sample | {"data": sample["data"].double()})
        state = trainer.network.state_dict()
        moved[trainer] = {key: state[key] - before[key] for key in before}
        grads = [p.grad for p in trainer.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        assert norm < 12  # beyond which nnU-Net clips, and steps are no longer proportional
    terms = ours.balancing.balancer.readings["term"]
    assert len({round(float(term), 3) for term in terms}) == 3
    for index, term in enumerate(terms.double()):
        keys = [key for key in before if key.startswith(f"encoders.{index}.")]
        assert len(keys) > 8
        wanted = torch.cat([(term * moved[joint][key]).flatten() for key in keys])
        found = torch.cat([moved[ours][key].flatten() for key in keys])
        assert torch.linalg.norm(wanted) > 1e-5
        assert torch.linalg.norm(found - wanted) < 1e-5 * torch.linalg.norm(wanted)
    for key in before:
        if key.startswith("decoder."):
            assert torch.equal(moved[ours][key], moved[joint][key]), key


@pytest.mark.parametrize("kind", TRAINERS)
def test_trains_validates_and_writes_a_checkpoint_without_heads(tmp_path, kind):
    trainer = start(make_trainer(kind, tmp_path, settings="{save_every: 1, head_lr: 0.002}"))
    losses = [float(trainer.train_step(batch(i))["loss"]) for i in range(6)]
    trainer.on_train_epoch_end([{"loss": losses[-1]}])
    assert losses[-1] < losses[0]
    trainer.network.eval()
    with torch.no_grad():
        quick = trainer.validation_step(batch(9))
    assert len(quick["tp_hard"]) == 2
    assert trainer.balancing.balancer.calls == 6
    file = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    saved = torch.load(file, weights_only=False)
    plain = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, len(NAMES), 3, False
    )
    plain.load_state_dict(saved["network_weights"])  # strictly: not a key more or less
    assert not [key for key in _strings(saved) if "head" in key.lower() and "Dice" not in key]
    assert len(saved["optimizer_state"]["param_groups"][0]["params"]) == len([*plain.parameters()])


def _strings(value, depth=0):
    """Keys of a checkpoint's mappings, but not those of plans and data set."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield str(key)
            if key != "init_args":
                yield from _strings(part, depth + 1)


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_resumed_training_goes_on_bit_for_bit(tmp_path, kind):
    straight = start(make_trainer(kind, tmp_path / "a"))
    for i in range(3):
        straight.train_step(batch(i))
    straight.on_train_epoch_end([{"loss": 1.0}])
    file = tmp_path / "checkpoint_latest.pth"
    straight.save_checkpoint(str(file))
    resumed = make_trainer(kind, tmp_path / "b")
    resumed.load_checkpoint(str(file))
    assert resumed.current_epoch == 1
    for trainer in (straight, resumed):
        trainer.network.train()
        trainer.balancing.balancer.start_epoch(2)
        for i in range(3, 5):
            trainer.train_step(batch(i))
    for key, value in straight.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key]), key
    states = [t.balancing.balancer.state_dict() for t in (straight, resumed)]
    for key, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][key]), key
    assert straight.balancing.iterations == resumed.balancing.iterations == 5


def test_a_lost_state_is_refused_and_old_ones_are_removed(tmp_path):
    trainer = start(make_trainer(nnUNetTrainerCGGM, tmp_path))
    file = tmp_path / "checkpoint_latest.pth"
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.save_checkpoint(str(file))
    states = sorted(tmp_path.glob("*.pt"))
    assert [state.name for state in states] == ["checkpoint_latest.balance_00002.pt"]
    states[0].unlink()
    with pytest.raises(UserError, match=r"state of the balancing method in .*00002.pt, but there"):
        make_trainer(nnUNetTrainerCGGM, tmp_path / "b").load_checkpoint(str(file))


def test_the_log_holds_every_step_and_loses_what_a_resume_repeats(tmp_path):
    trainer = start(make_trainer(nnUNetTrainerCGGM, tmp_path))
    log = trainer.balancing.run.balance
    for i in range(2):
        trainer.train_step(batch(i))
    trainer.on_train_epoch_end([{"loss": 1.0}])
    file = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    trainer.train_step(batch(2))
    trainer.balancing.end_epoch()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert {*rows[0]["term"]} == {*NAMES} == {*rows[0]["gradient_norm"]}
    assert (log.parent / "curves" / "curves.png").stat().st_size > 1000
    trainer.load_checkpoint(str(file))
    assert len(log.read_text().splitlines()) == 2
    values = trainer.logger.get_value("balance_term", step=0)
    assert len(values) == 3


def test_an_absent_channel_is_left_out(tmp_path):
    trainer = start(make_trainer(nnUNetTrainerCGGM, tmp_path))
    trainer.train_step(batch(1, absent=[(0, 1), (1, 1), (0, 2)]))
    readings = trainer.balancing.balancer.readings
    assert torch.isnan(readings["term"]).tolist() == [False, True, False]
    assert every(p.grad.abs().sum() == 0 for p in trainer.network.encoders[1].parameters())
    trainer.train_step(batch(2, absent=[(0, c) for c in range(3)]))  # air alone: nothing is absent
    assert torch.isfinite(trainer.balancing.balancer.readings["term"]).all()


def test_augmentation_adds_nothing_to_a_constant_channel():
    noisy = KeepConstant(lambda image, **rest: {"image": image + torch.randn_like(image), **rest})
    image = torch.randn(3, 8, 8)
    image[1] = 4.0
    result = noisy(image=image, segmentation=torch.zeros(1, 8, 8))
    assert torch.equal(result["image"][1], torch.zeros(8, 8))
    assert result["image"][0].std() > 0.5
    assert "segmentation" in result


def test_what_cannot_work_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="Unknown setting 'rhoo' of CGGM"):
        make_trainer(nnUNetTrainerCGGM, tmp_path, settings="settings: {rhoo: 1.0}")
    with pytest.raises(UserError, match="width"):
        make_trainer(nnUNetTrainerCGGM, tmp_path, settings="width: -1")
    monkeypatch.setenv("CGGM_NNUNET", str(tmp_path / "nothing.yaml"))
    with pytest.raises(UserError, match=r"CGGM_NNUNET to name a YAML file, but there is no"):
        make_trainer(nnUNetTrainerCGGM, tmp_path)


def test_settings_take_effect(tmp_path, monkeypatch):
    named = tmp_path / "mine.yaml"
    named.write_text("{epochs: 7, iterations: 5, width: 2.0, settings: {lam: 0.25}}")
    monkeypatch.setenv("CGGM_NNUNET", str(named))
    trainer = make_trainer(nnUNetTrainerCGGM, tmp_path, settings="epochs: 3")
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (7, 5)
    assert trainer.balancing.balancer.lam == 0.25
    assert trainer.network.widths == [4, 8, 16, 16]
    assert trainer.plans_manager.plans["cggm"] == {"width": 2.0}  # which prediction reads


def test_a_chain_has_settings_of_its_own_and_takes_others_one_by_one(tmp_path):
    trainer = make_trainer(nnUNetTrainerMRDUnimodalLosses, tmp_path / "a")
    dropout, losses = trainer.balancing.balancer.parts
    assert torch.allclose(dropout.draws.shares(), torch.tensor([4 / 7] * 3))
    assert losses.weight == 1.0
    settings = "settings: {ModalityDropout: {p: 0.0}}"  # what is given takes effect alone
    trainer = make_trainer(nnUNetTrainerMRDUnimodalLosses, tmp_path / "c", settings=settings)
    assert trainer.balancing.balancer.parts[0].draws.shares().tolist() == [1.0] * 3
    settings = "settings: {ModalityDropout: {seed: 4}, UnimodalLosses: {weight: 0.5}}"
    trainer = make_trainer(nnUNetTrainerMRDUnimodalLosses, tmp_path / "b", settings=settings)
    dropout, losses = trainer.balancing.balancer.parts
    assert losses.weight == 0.5
    assert trainer.settings.settings["ModalityDropout"] == {"p": 0.5, "seed": 4}


def test_two_phases_of_a_ct_have_names_of_their_own():
    assert channel_names({"channel_names": {"0": "CT", "1": "CT"}}) == ["CT_0", "CT_1"]
    assert channel_names({"channel_names": {"0": "T1.c", "1": "T2"}}) == ["T1_c", "T2"]
