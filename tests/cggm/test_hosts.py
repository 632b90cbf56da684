"""The same balancer in a bare loop, a custom engine, Ignite's trainer and MONAI's trainer."""

import json

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from monai.engines import SupervisedTrainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from cggm import CGGM, BalanceHandler, Balancer, BalanceRecorder
from tests.cggm.networks import NAMES, accuracy, late_batch, make_late
from tests.quantifiers import every

ITERATIONS, EPOCHS = 8, 2
INPUTS, TARGET = late_batch(ITERATIONS * 4)


def loader():
    return DataLoader(TensorDataset(INPUTS, TARGET), batch_size=4)


class Session:
    """A fresh network, optimizer and balancer, and the terms that each iteration used."""

    def __init__(self, **settings):
        self.network, heads = make_late()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        self.loss = nn.CrossEntropyLoss()
        self.balancer = CGGM(
            heads,
            self.loss,
            accuracy,
            lam=0.3,
            head_optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            **settings,
        )
        self.terms = []

    def note(self, engine=None):
        self.terms.append(self.balancer.readings["term"].clone())

    def run(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)
        engine.run(loader(), max_epochs=EPOCHS)
        return self


def bare_loop(accumulation, **settings):
    session = Session(**settings)
    session.balancer.bind(session.network)
    iteration = 0
    for _ in range(EPOCHS):
        for inputs, target in loader():
            if iteration % accumulation == 0:
                session.optimizer.zero_grad()
            loss = session.balancer(session.network(inputs), target)
            (loss / accumulation).backward()
            iteration += 1
            if iteration % accumulation == 0:
                session.optimizer.step()
            session.note()
    return session


def custom_engine(accumulation, **settings):
    session = Session(**settings)
    session.balancer.bind(session.network)

    def update(engine, batch):
        if (engine.state.iteration - 1) % accumulation == 0:
            session.optimizer.zero_grad()
        loss = session.balancer(session.network(batch[0]), batch[1])
        (loss / accumulation).backward()
        if engine.state.iteration % accumulation == 0:
            session.optimizer.step()
        return loss.item()

    engine = Engine(update)
    BalanceHandler(session.balancer).attach(engine)
    return session.run(engine)


def ignite_trainer(accumulation, **settings):
    session = Session(**settings)
    engine = create_supervised_trainer(
        session.network,
        session.optimizer,
        session.loss,
        gradient_accumulation_steps=accumulation,
    )
    BalanceHandler(session.balancer, session.network, accumulation_steps=accumulation).attach(
        engine
    )
    return session.run(engine)


def ignite_trainer_of_the_balancer(accumulation, **settings):
    session = Session(**settings)
    session.balancer.bind(session.network)
    engine = create_supervised_trainer(
        session.network,
        session.optimizer,
        session.balancer,
        gradient_accumulation_steps=accumulation,
    )
    BalanceHandler(session.balancer).attach(engine)
    return session.run(engine)


def monai_trainer(accumulation, as_train_handler=False, **settings):
    session = Session(**settings)
    handler = BalanceHandler(session.balancer)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=loader(),
        network=session.network,
        optimizer=session.optimizer,
        loss_function=session.loss,
        prepare_batch=lambda batch, device, non_blocking, **_: batch,
        accumulation_steps=accumulation,
        decollate=False,
        train_handlers=[handler] if as_train_handler else None,
    )
    if not as_train_handler:
        handler.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, session.note)
    trainer.run()
    return session


HOSTS = [custom_engine, ignite_trainer, ignite_trainer_of_the_balancer, monai_trainer]


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("host", HOSTS)
def test_same_coefficients_bit_for_bit(host, accumulation):
    expected = bare_loop(accumulation)
    found = host(accumulation)
    assert len(found.terms) == len(expected.terms) == ITERATIONS * EPOCHS
    for a, b in zip(found.terms, expected.terms, strict=True):
        assert torch.equal(a, b)
    assert len({tuple(t.tolist()) for t in expected.terms}) > 4
    assert found.balancer.scores.steps == ITERATIONS * EPOCHS / accumulation
    for p, q in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_monai_train_handlers_that_attach_before_the_network_exists():
    found, expected = monai_trainer(1, as_train_handler=True), bare_loop(1)
    assert every(torch.equal(a, b) for a, b in zip(found.terms, expected.terms, strict=True))


@pytest.mark.parametrize("settings", [{}, {"direction": None}, {"acts_on": "update"}])
def test_both_routes_give_equal_gradients(settings):
    gradients = []
    for route in (bare_loop, ignite_trainer):
        session = route(1, **settings)
        gradients.append([p.grad for p in session.network.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-7)


def raise_os_error():
    raise OSError("disk full")


def test_handler_unbinds_at_the_end_and_binds_again():
    session = Session()
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    BalanceHandler(session.balancer, session.network).attach(engine)
    for runs in (1, 2):
        engine.run(loader(), max_epochs=runs)
        assert not session.balancer.bound
        assert session.balancer.scores.steps == ITERATIONS * runs
    assert not session.network._forward_hooks


def test_a_balancer_that_was_bound_before_is_called_once_per_iteration_in_every_run():
    session = Session()
    session.balancer.bind(session.network)
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    BalanceHandler(session.balancer, session.network).attach(engine)
    for runs in (1, 2):
        engine.run(loader(), max_epochs=runs)
        assert session.balancer.bound
        assert session.balancer.calls == ITERATIONS * runs
    assert not session.network._forward_hooks


def test_a_run_that_broke_off_leaves_no_second_call_to_the_next():
    session = Session()
    session.balancer.bind(session.network)
    handler = BalanceHandler(session.balancer, session.network)
    broken, whole = (
        create_supervised_trainer(session.network, session.optimizer, session.loss)
        for _ in range(2)
    )
    handler.attach(broken)
    broken.add_event_handler(Events.ITERATION_COMPLETED(once=2), raise_os_error)
    with pytest.raises(OSError, match="disk"):
        broken.run(loader(), max_epochs=1)
    assert session.balancer.calls == 2
    handler.attach(whole)
    whole.run(loader(), max_epochs=1)
    assert session.balancer.calls == 2 + ITERATIONS


def test_readings_are_published():
    session = Session()
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    BalanceHandler(session.balancer, session.network).attach(engine)
    engine.run(loader(), max_epochs=1)
    assert engine.state.balance["term"].shape == (3,)


def test_grad_scaler_of_the_trainer_scales_the_added_loss():
    found = {}
    for scale in (None, 512.0):
        session = Session()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None

        def update(engine, batch, session=session, scaler=scaler):
            session.optimizer.zero_grad()
            loss = session.loss(session.network(batch[0]), batch[1])
            (scaler.scale(loss) if scaler else loss).backward()
            if scaler:
                scaler.step(session.optimizer)
                scaler.update()
            else:
                session.optimizer.step()

        engine = Engine(update)
        BalanceHandler(session.balancer, session.network, scaler=scaler).attach(engine)
        session.run(engine)
        found[scale] = session
    for a, b in zip(found[None].terms, found[512.0].terms, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)
    parameters = (found[s].network.parameters() for s in found)
    for p, q in zip(*parameters, strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_an_engine_that_never_calls_the_balancer_is_an_error():
    session = Session()
    session.balancer.bind(session.network)
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    BalanceHandler(session.balancer).attach(engine)
    with pytest.raises(RuntimeError, match=r"did not\. Pass `network=`"):
        engine.run(loader(), max_epochs=1)


def test_nothing_to_bind_is_an_error():
    session = Session()
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    BalanceHandler(session.balancer).attach(engine)
    with pytest.raises(ValueError, match="got neither"):
        engine.run(loader(), max_epochs=1)


def test_a_wrong_accumulation_divisor_is_an_error():
    session = Session()
    engine = create_supervised_trainer(
        session.network, session.optimizer, session.loss, gradient_accumulation_steps=4
    )
    BalanceHandler(session.balancer, session.network).attach(engine)
    with pytest.raises(RuntimeError, match="gradient_accumulation_steps as `accumulation_steps=`"):
        engine.run(loader(), max_epochs=1)


def test_a_batch_of_another_form_asks_for_prepare_batch():
    session = Session()
    prepare = lambda batch, device, non_blocking: (batch["x"], batch["y"])  # noqa: E731
    engine = create_supervised_trainer(
        session.network, session.optimizer, session.loss, prepare_batch=prepare
    )
    batches = [{"x": INPUTS[:4], "y": TARGET[:4]}]
    handler = BalanceHandler(session.balancer, session.network).attach(engine)
    with pytest.raises(TypeError, match="Pass the trainer's `prepare_batch`"):
        engine.run(batches, max_epochs=1)
    session.balancer.unbind()
    other = Session()
    engine = create_supervised_trainer(
        other.network, other.optimizer, other.loss, prepare_batch=prepare
    )
    BalanceHandler(other.balancer, other.network, prepare_batch=prepare).attach(engine)
    engine.run(batches, max_epochs=1)
    assert other.balancer.scores.steps == 1
    assert handler.balancer is session.balancer


def test_joint_training_attaches_too():
    network, _ = make_late()
    joint, _ = make_late()
    for model, attached in ((network, True), (joint, False)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
        if attached:
            BalanceHandler(Balancer(nn.CrossEntropyLoss()), model).attach(engine)
        engine.run(loader(), max_epochs=1)
    for p, q in zip(network.parameters(), joint.parameters(), strict=True):
        assert torch.equal(p, q)


def test_recorder_writes_one_line_per_iteration(tmp_path):
    session = Session()
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    BalanceHandler(session.balancer, session.network).attach(engine)
    norms = []

    def hand_norms(*_):
        parts = [
            torch.cat([p.grad.flatten() for p in session.network.encoders[n].parameters()])
            for n in NAMES
        ]
        norms.append([part.norm().item() for part in parts])

    session.optimizer.register_step_pre_hook(hand_norms)
    recorder = BalanceRecorder(session.balancer, tmp_path / "balance.jsonl", every=2, flush_every=3)
    recorder.attach(engine)
    session.run(engine)
    lines = [json.loads(x) for x in (tmp_path / "balance.jsonl").read_text().splitlines()]
    assert [x["iteration"] for x in lines] == list(range(2, 17, 2))
    assert set(lines[0]) == {
        "iteration", "epoch", "loss", "score", "raw_term", "term", "cosine", "head_loss",
        "gate", "gradient_norm",
    }  # fmt: skip
    for line in lines:
        step = line["iteration"] - 1
        assert list(line["term"]) == list(NAMES)
        assert list(line["term"].values()) == session.terms[step].tolist()
        assert_close(list(line["gradient_norm"].values()), norms[step], rtol=1e-5, atol=1e-7)


def test_monai_dictionaries_of_meta_tensors():
    from monai.data import MetaTensor

    session, expected = Session(), bare_loop(1)
    batches = [
        {"image": MetaTensor(INPUTS[i : i + 4]), "label": MetaTensor(TARGET[i : i + 4])}
        for i in range(0, 32, 4)
    ]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=batches,
        network=session.network,
        optimizer=session.optimizer,
        loss_function=session.loss,
    )
    BalanceHandler(session.balancer).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, session.note)
    trainer.run()
    for a, b in zip(session.terms, expected.terms, strict=True):
        assert type(a) is torch.Tensor
        assert torch.equal(a, b)


def test_compiled_network_on_ignites_trainer():
    session, expected = Session(), bare_loop(1)
    compiled = torch.compile(session.network, backend="aot_eager")
    engine = create_supervised_trainer(compiled, session.optimizer, session.loss)
    BalanceHandler(session.balancer, compiled).attach(engine)
    session.run(engine)
    torch.compiler.reset()
    for a, b in zip(session.terms, expected.terms, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)
    for p, q in zip(session.network.parameters(), expected.network.parameters(), strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-5)


class Noting(Balancer):
    """Joint training that notes what it is told of."""

    def __init__(self):
        super().__init__(nn.CrossEntropyLoss())
        self.told = []

    def start_epoch(self, epoch):
        self.told.append(("start", epoch))

    def end_epoch(self, epoch):
        self.told.append(("end", epoch))

    def commit(self):
        self.told.append("step")


def test_a_handler_tells_the_boundaries_of_epochs():
    network, _ = make_late()
    balancer = Noting().bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def update(engine, batch):
        optimizer.zero_grad()
        balancer(network(batch[0]), batch[1]).backward()
        optimizer.step()

    engine = Engine(update)
    BalanceHandler(balancer).attach(engine)
    engine.run(loader(), max_epochs=EPOCHS)
    epoch = ["step"] * ITERATIONS
    assert balancer.told == [
        *(("start", 1), *epoch, ("end", 1)),
        *(("start", 2), *epoch, ("end", 2)),
    ]


def test_a_loss_that_is_given_is_the_one_that_is_returned():
    network, _ = make_late()
    balancer = Noting().bind(network)
    prediction = network(INPUTS[:4])
    given = 7 * nn.functional.cross_entropy(prediction, TARGET[:4])
    assert balancer(prediction, TARGET[:4], given).item() == given.item()


@pytest.mark.parametrize(("found_inf", "moves"), [(0.0, True), (1.0, False), (None, True)])
def test_state_moves_unless_a_fused_optimizer_was_told_to_skip(found_inf, moves):
    network, _ = make_late()
    balancer = Noting().bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=found_inf is not None)
    if found_inf is not None:
        optimizer.found_inf = torch.tensor(found_inf)  # as a GradScaler sets it
    balancer(network(INPUTS[:4]), TARGET[:4]).backward()
    optimizer.step()
    assert balancer.told == ["step"] * moves
