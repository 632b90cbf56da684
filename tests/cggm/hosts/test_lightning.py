"""Lightning: what a checkpoint holds, a resumed fit, logs, mixed precision, ranks, refusals."""

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: pip install lightning")

from lightning.pytorch.plugins import MixedPrecision

from cggm.errors import UserError
from cggm.hosts import BalanceCallback
from tests.cggm.contract_hosts import EPOCHS, Session, bare_loop, positions
from tests.cggm.hosts.trainers import (
    lightning_automatic,
    loader,
    module_of,
    quiet_trainer,
    torch_state,
)


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


def half_precision_loop(name, dtype, scaler):
    """A bare loop with autocast around forward pass and criterion, without cache as Lightning's."""
    session = Session(name)
    session.balancer.bind(session.network)
    for epoch in range(1, EPOCHS + 1):
        session.balancer.start_epoch(epoch)
        for batch in session.batches:
            session.balancer.identify(positions(batch))
            session.optimizer.zero_grad()
            with torch.autocast("cpu", dtype, cache_enabled=False):
                loss = session.balancer(session.network(batch[0]), batch[1])
            scaler.scale(loss).backward()
            scaler.step(session.optimizer)
            scaler.update()
        session.balancer.end_epoch(epoch)
    return session


@pytest.mark.parametrize("name", ["CGGM", "GuidedHeads", "OGM"])
@pytest.mark.parametrize(
    ("precision", "scale", "steps"), [("bf16", None, 6), ("16", 2.0**10, 6), ("16", 2.0**127, 0)]
)
def test_mixed_precision_is_that_of_a_bare_loop_bit_for_bit(name, precision, scale, steps):
    made = [torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=bool(scale)) for _ in "ab"]
    kind = f"{precision}-mixed"  # Lightning makes bf16-mixed of the word 16-mixed on a processor
    plugin = MixedPrecision(kind, "cpu", made[0] if scale else None)
    found = lightning_automatic(name, 1, plugins=[plugin])
    wanted = half_precision_loop(name, torch.float16 if scale else torch.bfloat16, made[1])
    assert found.balancer.clock.steps == wanted.balancer.clock.steps == steps
    compare(torch_state(found), torch_state(wanted))


def compare(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(torch.nan_to_num(found[key]), torch.nan_to_num(value)), key


@pytest.mark.slow
def test_a_compiled_network_trains_like_an_eager_one():
    def trained(compiled):
        session = Session("CGGM")
        module = module_of(session)
        module.network = torch.compile(session.network) if compiled else session.network
        trainer = quiet_trainer(callbacks=[BalanceCallback(session.balancer)], max_epochs=1)
        trainer.fit(module, loader(session))
        return torch_state(session)

    eager, compiled = trained(compiled=False), trained(compiled=True)
    torch.compiler.reset()
    for key, value in eager.items():
        assert torch.allclose(compiled[key], value, atol=1e-6), key


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
