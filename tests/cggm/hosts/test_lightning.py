"""Lightning: what a checkpoint holds, a resumed fit, logs, mixed precision, ranks, refusals."""

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: pip install lightning")

from cggm.errors import UserError
from cggm.hosts import BalanceCallback
from tests.cggm.contract_hosts import Session, bare_loop
from tests.cggm.hosts.trainers import loader, module_of, quiet_trainer, torch_state


def fit(session, *, path=None, epochs=3, logged=("score", "term"), **options):
    module = module_of(session)
    callback = BalanceCallback(session.balancer, logged=logged)
    trainer = quiet_trainer(callbacks=[callback], max_epochs=epochs, **options)
    trainer.fit(module, loader(session), ckpt_path=path)
    return trainer, module


def test_a_checkpoint_of_one_fit_goes_on_in_another_and_holds_no_head_among_the_weights(tmp_path):
    straight = Session("CGGM")
    fit(straight)
    first, second = Session("CGGM"), Session("CGGM")
    keys = {*module_of(first).state_dict()}
    file = tmp_path / "last.ckpt"
    trainer, _ = fit(
        first,
        epochs=2,
        enable_checkpointing=True,
        default_root_dir=str(tmp_path),
    )
    trainer.save_checkpoint(file)
    saved = torch.load(file, weights_only=False)
    assert {*saved["state_dict"]} == keys
    assert any("heads" in key for key in saved["callbacks"]["BalanceCallback"]["balancer"])
    fit(second, path=str(file))
    found, wanted = torch_state(second), torch_state(straight)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    bare = bare_loop("CGGM", 1)  # a checkpoint of one host loads in another
    bare.balancer.load_state_dict(saved["callbacks"]["BalanceCallback"]["balancer"])
    assert bare.balancer.clock.steps == 4


def test_readings_are_logged_and_the_module_is_left_as_it_was():
    session = Session("CGGM")
    trainer, module = fit(session)
    names = list(session.network.encoders)
    for index, name in enumerate(names):
        logged = trainer.callback_metrics[f"balance/term/{name}"]
        assert logged == session.balancer.readings["term"][index]
    assert module.criterion is session.loss
    assert not session.balancer.bound
    assert not [key for key in module.state_dict() if "head" in key]
    assert {id(p) for p in module.parameters()} == {id(p) for p in session.network.parameters()}


def test_validation_is_the_loss_alone():
    session = Session("CGGM")
    module = module_of(session)
    trainer = quiet_trainer(callbacks=[BalanceCallback(session.balancer)], max_epochs=1)
    trainer.fit(module, loader(session), loader(session))
    calls = session.balancer.calls
    assert calls == len(session.batches)
    with torch.no_grad():
        losses = [session.loss(session.network.eval()(x), y) for x, y in session.batches]
    assert trainer.callback_metrics["val"] == pytest.approx(float(torch.stack(losses).mean()))


def test_bfloat16_balances_too():
    session = Session("CGGM")
    fit(session, precision="bf16-mixed")
    assert torch.isfinite(session.balancer.readings["term"]).all()
    assert session.balancer.clock.steps == 3 * len(session.batches)


def test_a_module_without_these_attributes_is_refused():
    session = Session("CGGM")
    trainer = quiet_trainer(callbacks=[BalanceCallback(session.balancer, criterion="loss_fn")])
    with pytest.raises(UserError, match=r"Module to have an attribute 'loss_fn', but it has none"):
        trainer.fit(module_of(session), loader(session))


def test_a_module_that_computes_its_loss_elsewhere_is_refused():
    session = Session("CGGM")
    module = module_of(session)
    module.other = torch.nn.Identity()
    callback = BalanceCallback(session.balancer, criterion="other")
    with pytest.raises(RuntimeError, match=r"Module to call `self.other` in training_step"):
        quiet_trainer(callbacks=[callback]).fit(module, loader(session))
    assert not session.balancer.bound
