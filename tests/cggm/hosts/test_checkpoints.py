"""Checkpoints: what one host has saved, another goes on from, bit for bit."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from ignite.engine import create_supervised_trainer

pytest.importorskip("lightning", reason="needs lightning: pip install lightning")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
pytest.importorskip("transformers", reason="needs transformers: pip install 'cggm[features]'")

from safetensors.torch import load_file

from cggm import BalanceHandler, runs
from cggm.hosts import BalanceCallback
from tests.cggm.contract_hosts import EPOCHS, Session, bare_loop, positions
from tests.cggm.hosts.trainers import loader, module_of, quiet_trainer, torch_state, trainer_of

NAME = "CGGM"
LAST = EPOCHS - 1  # epochs before the checkpoint


def of_bare_loop(folder: Path):
    session = bare_epochs(Session(NAME), range(1, LAST + 1))
    parts = (session.network, session.optimizer, session.balancer)
    torch.save([part.state_dict() for part in parts], folder / "mine.pt")
    return torch.load(folder / "mine.pt", weights_only=True)


def of_session(folder: Path):
    session = Session(NAME)
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    parts = runs.TrainingParts(session.network, session.optimizer)
    data = runs.TrainingData(session.batches)
    options = runs.SessionOptions(max_epochs=LAST, curves=False)
    handler = session.handler(session.network)
    runs.Session(
        engine, parts, data, runs.RunFolder(folder / "run"), options, balance=handler
    ).run()
    fresh = Session(NAME)
    fresh.balancer.bind(fresh.network)
    runs.load_network_weights(
        folder / "run" / "checkpoints",
        fresh.network,
        {"balancer": fresh.balancer, "optimizer": fresh.optimizer},
    )
    return [part.state_dict() for part in (fresh.network, fresh.optimizer, fresh.balancer)]


def of_lightning(folder: Path):
    session = Session(NAME)
    module = module_of(session)
    callback = BalanceCallback(session.balancer, identify=positions)
    trainer = quiet_trainer(
        callbacks=[callback], max_epochs=LAST, enable_checkpointing=True, default_root_dir=folder
    )
    trainer.fit(module, loader(session))
    trainer.save_checkpoint(folder / "last.ckpt")
    saved = torch.load(folder / "last.ckpt", weights_only=False)
    weights = {k.removeprefix("network."): v for k, v in saved["state_dict"].items()}
    balancer = saved["callbacks"]["BalanceCallback"]["balancer"]
    return [weights, saved["optimizer_states"][0], balancer]


def of_accelerate(folder: Path):
    from accelerate import Accelerator

    session = Session(NAME)
    accelerator = Accelerator(cpu=True)
    network, optimizer = accelerator.prepare(session.network, session.optimizer)
    session.balancer.bind(network)
    accelerator.register_for_checkpointing(session.balancer)
    bare_epochs(session, range(1, LAST + 1))
    accelerator.save_state(folder / "state")
    state = folder / "state"
    optimizer = torch.load(state / "optimizer.bin", weights_only=True)
    balancer = torch.load(state / "custom_checkpoint_0.pkl", weights_only=True)
    return [load_file(state / "model.safetensors"), optimizer, balancer]


def of_hugging_face(folder: Path):
    session = Session(NAME)
    trainer = trainer_of(session, folder, num_train_epochs=LAST, save_strategy="epoch")
    trainer.train()
    (state,) = folder.glob(f"checkpoint-{LAST * len(session.batches)}")
    weights = load_file(state / "model.safetensors")
    files = (torch.load(state / f"{n}.pt", weights_only=True) for n in ("optimizer", "balancer"))
    return [{k.removeprefix("network."): v for k, v in weights.items()}, *files]


def bare_epochs(session: Session, epochs) -> Session:
    """Epochs of a bare loop, of a session that may be bound and half trained."""
    if not session.balancer.bound:
        session.balancer.bind(session.network)
    for epoch in epochs:
        session.balancer.start_epoch(epoch)
        for batch in session.batches:
            session.step(batch, 1, 1)
        session.balancer.end_epoch(epoch)
    return session


def in_bare_loop(session: Session, state, folder) -> None:
    bare_epochs(session.bound(state), [EPOCHS])


def in_ignite(session: Session, state, folder) -> None:
    session.bound(state)
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    BalanceHandler(session.balancer, session.network).attach(engine)
    engine.run(session.batches, max_epochs=1)


def in_lightning(session: Session, state, folder) -> None:
    callback = BalanceCallback(session.balancer)
    callback.load_state_dict({"balancer": state})
    trainer = quiet_trainer(callbacks=[callback], max_epochs=1)
    trainer.fit(module_of(session), loader(session))


def in_hugging_face(session: Session, state, folder) -> None:
    session.bound(state)
    trainer_of(session, folder, num_train_epochs=1).train()


class Loaded(Session):
    """A session that gets what a checkpoint held."""

    def __init__(self, weights, optimizer) -> None:
        super().__init__(NAME)
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)

    def bound(self, state) -> "Loaded":
        """Bound, with the state of the method."""
        self.balancer.bind(self.network)
        self.balancer.load_state_dict(state)
        return self


SOURCES = [of_bare_loop, of_session, of_lightning, of_accelerate, of_hugging_face]
TARGETS = [in_bare_loop, in_ignite, in_lightning, in_hugging_face]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints by the host that wrote them."""
    return {source: source(tmp_path_factory.mktemp(source.__name__)) for source in SOURCES}


@pytest.fixture(scope="module")
def straight():
    return torch_state(bare_loop(NAME, 1))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_checkpoint_of_one_host_goes_on_in_another(saved, straight, source, target, tmp_path):
    weights, optimizer, balancer = deepcopy(saved[source])
    session = Loaded(weights, optimizer)
    target(session, balancer, tmp_path)
    found = torch_state(session)
    assert session.balancer.clock.steps == EPOCHS * len(session.batches)
    assert found.keys() == straight.keys()
    for key, value in straight.items():
        assert torch.allclose(found[key], value, atol=1e-6), key
        if target is not in_ignite and source is not of_session:  # whose trainer is Ignite's own
            assert torch.equal(found[key], value), key
