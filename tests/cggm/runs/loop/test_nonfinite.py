"""A loss or a gradient that is not finite ends a run, or costs it that step and nothing else."""

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn
from torch.testing import assert_close

from cggm import BalanceHandler
from cggm.errors import UserError
from cggm.methods import method_names
from cggm.runs.loop.deferred import DeferredLooks, finite_flags
from cggm.runs.loop.nonfinite import NonFiniteGuard
from tests.cggm.contract import CONTRACTS
from tests.cggm.contract_runs import build, make
from tests.cggm.networks import make_cggm, make_late
from tests.cggm.runs.loop.nonfinite_runs import (
    SAVED,
    Training,
    batches_of,
    found_of_rank,
    normed,
    plain_training,
)
from tests.cggm.synchronization import Waits
from tests.quantifiers import every
from tests.ranks import on_two_ranks

HALF = {"most_skipped": 0.5}


def equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert_close(value, other[key], rtol=0, atol=0, equal_nan=True, msg=key)


def stopped(training, batches, **options):
    with pytest.raises(UserError) as caught:
        training.run(batches, **options)
    return str(caught.value)


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize(
    ("value", "fault"),
    # tanh of infinity is finite, its derivative times infinity is not
    [
        (float("nan"), "the loss is nan"),
        (float("inf"), "the gradient of encoder audio is not finite"),
    ],
)
def test_a_bad_batch_ends_the_run_before_its_step(value, fault, clip):
    whole = plain_training(clip=clip).run(batches_of(2))
    training = plain_training(clip=clip)
    message = stopped(training, batches_of(4, bad=(2,), value=value))
    assert f"Epoch 1, iteration 3: {fault} on the samples 2-0, 2-1, 2-2" in message
    assert f"in {SAVED}" in message
    assert "--skip_nonfinite goes on" in message
    [(iteration, state)] = training.saved
    assert iteration == 2
    equal(state, whole.state())
    equal(training.state(), whole.state())


# PASSION compares maps of classes, which the network of this test has none of.
@pytest.mark.parametrize("method", [name for name in method_names() if name != "PASSION"])
def test_a_skipped_step_leaves_no_trace_in_any_method(method):
    found = []
    for bad in ((), (1,)):
        network = make(method)
        balancer = build(method, network, **CONTRACTS[method].settings).bind(network)
        training = Training(network, balancer, skip=True)
        batches = batches_of(4, bad=(1,))
        found.append(training.run(batches if bad else [batches[i] for i in (0, 2, 3)]))
    equal(found[1].state(), found[0].state())
    assert found[1].engine.state.skipped_steps == 1
    network = {k: v for k, v in found[1].state().items() if k.startswith("network")}
    assert every(value.isfinite().all() for value in network.values())


def test_skipped_steps_leave_running_statistics_and_further_epochs_alone():
    whole, skipping = plain_training(), plain_training(skip=True, options=HALF)
    batches = batches_of(4, bad=(0, 3))
    whole.run(batches[1:3], max_epochs=2)
    skipping.run(batches, max_epochs=2)
    equal(skipping.state(), whole.state())
    assert skipping.engine.state.skipped_steps == 2  # of the last epoch alone


def test_more_than_the_allowed_share_of_an_epoch_ends_the_run():
    training = plain_training(skip=True, options={"most_skipped": 0.2})
    message = stopped(training, batches_of(10, bad=(1, 4, 7)))
    assert "iteration 8: " in message
    assert "3 steps of this epoch were skipped" in message
    assert "--skip_nonfinite" not in message
    assert training.saved[0][0] == 7
    plain_training(skip=True, options={"most_skipped": 0.3}).run(batches_of(10, bad=(1, 4, 7)))


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (lambda t: t.network.encoders["audio"][0].weight, "encoder audio"),
        (lambda t: t.network.output_layer.weight, "the rest of the network"),
    ],
)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_gradient_is_named_by_its_part_even_where_it_is_clipped(clip, part, named):
    training = plain_training(clip=clip)
    before = training.state()
    part(training).register_hook(lambda gradient: gradient * float("inf"))
    message = stopped(training, batches_of(2))
    assert f"iteration 1: the gradient of {named} is not finite on the samples 0-0" in message
    equal(training.state() | {k: v for k, v in before.items() if "optimizer" in k}, before)


def test_a_head_alone_is_enough():
    training = plain_training()
    start = training.state()

    step = training.update

    def poisoned():
        training.balancer.heads.window["gradient/video.output_layer.weight"].mul_(torch.nan)
        step()

    training.update = poisoned
    assert "the gradient of head video is not finite" in stopped(training, batches_of(1))
    equal(training.state(), start)


def test_a_window_of_micro_batches_is_refused_as_a_whole():
    whole = plain_training(accumulation=2)
    batches = batches_of(6, bad=(2,))
    whole.run(batches[:2] + batches[4:])
    training = plain_training(accumulation=2, skip=True)
    equal(training.run(batches).state(), whole.state())
    stopping = plain_training(accumulation=2)
    message = stopped(stopping, batches)
    assert "iteration 4: the loss is nan on the samples 2-0" in message
    assert stopping.saved[0][0] == 2


def scaled(**options):
    return plain_training(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10), **options)


def test_an_overflow_is_the_scalers_affair_and_a_bad_loss_is_not():
    overflowing = scaled()
    weight = overflowing.network.output_layer.weight
    overflow = iter([1.0, float("inf"), 1.0])
    weight.register_hook(lambda gradient: gradient * next(overflow))
    overflowing.run(batches_of(3))
    assert overflowing.engine.state.skipped_steps == 0
    assert overflowing.balancer.clock.steps == 2
    message = stopped(scaled(), batches_of(3, bad=(1,)))
    assert "iteration 2: the loss is nan on the samples 1-0" in message
    skipping, whole = scaled(skip=True), scaled()
    batches = batches_of(3, bad=(1,))
    equal(skipping.run(batches).state(), whole.run(batches[::2]).state())
    assert skipping.engine.state.skipped_steps == 1


def test_a_scale_that_falls_without_end_is_noticed():
    training = scaled()
    hook = training.network.encoders["text"][0].weight.register_hook
    hook(lambda gradient: gradient * float("nan"))
    message = stopped(training, batches_of(20))
    assert "iteration 11: the gradient of encoder text is not finite on the samples 10-0" in message


def monai_trainer(batches, skip):
    network, heads = make_late()
    balancer = make_cggm(heads).bind(normed(network))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer,
        loss_function=nn.CrossEntropyLoss(),
        prepare_batch=lambda batch, *_, **__: (batch["inputs"], batch["target"]),
        decollate=False,
    )
    BalanceHandler(balancer).attach(trainer)
    guard = NonFiniteGuard(
        *(network, optimizer, balancer),
        names=lambda batch: batch["names"],
        save=lambda iteration: SAVED,
        skip=skip,
    )
    guard.attach(trainer)
    errors = []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, errors.append)
    trainer.run()
    return network.state_dict(), trainer.state, errors


def test_in_monais_trainer():
    batches = batches_of(4, bad=(2,))
    state, _, [error] = monai_trainer(batches, skip=False)
    assert isinstance(error, UserError)
    assert "iteration 3: the loss is nan on the samples 2-0" in str(error)
    equal(state, monai_trainer(batches[:2], skip=False)[0])
    state, engine_state, errors = monai_trainer(batches, skip=True)
    assert (engine_state.skipped_steps, errors) == (1, [])
    equal(state, monai_trainer([batches[i] for i in (0, 1, 3)], skip=False)[0])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(found_of_rank, tmp_path_factory.mktemp("ranks"))


def test_all_ranks_stop_at_a_batch_of_one_and_name_its_samples(ranks):
    first, second = (rank["stop"] for rank in ranks)
    assert first["message"] == second["message"]
    assert "iteration 3: the loss is nan on the samples rank1-2-0" in first["message"]
    assert "rank0" not in first["message"]
    equal(first["state"], second["state"])


def test_all_ranks_skip_together(ranks):
    first, second = (rank["skip"] for rank in ranks)
    assert first["message"] == second["message"] == ""
    equal(first["state"], second["state"])
    assert every(value.isfinite().all() for value in first["state"].values())


def test_a_rank_without_foreground_gives_finite_losses(ranks):
    for rank in ranks:
        assert rank["background"].isfinite().all()


class Held:
    """Keeps the state of a training in memory, as a run's saver does."""

    def __init__(self):
        self.states, self.saves = [], 0
        self.deferred = DeferredLooks(4, self.hold, self.save)

    def hold(self, iteration):
        self.states.append((iteration, self.training.state()))

    def save(self):
        self.saves += 1
        return self.states[-1][0], SAVED


def deferring(**settings):
    held = Held()
    held.training = plain_training(options={"deferred": held.deferred}, **settings)
    return held, held.training


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("bad", [0, 3, 4, 5, 9])
def test_deferred_looks_keep_the_state_from_before_the_first_bad_step(bad, clip):
    held, training = deferring(clip=clip)
    message = stopped(training, batches_of(10, bad=(bad, 9)))
    assert f"Epoch 1, iteration {bad + 1}: the loss is nan on the samples {bad}-0, " in message
    kept = 4 * (bad // 4)
    assert f"The weights are those from after step {kept}, before it, in {SAVED}." in message
    assert held.saves == 1
    iteration, state = held.states[-1]
    assert iteration == kept
    whole = plain_training(clip=clip).run(batches_of(kept)) if kept else plain_training(clip=clip)
    equal(state, whole.state())


def test_deferred_looks_name_the_part_whose_gradient_is_bad():
    _, training = deferring()
    message = stopped(training, batches_of(4, bad=(2,), value=float("inf")))
    assert "iteration 3: the gradient of encoder audio is not finite on the samples 2-0" in message


def test_deferred_looks_change_no_step():
    held, training = deferring(accumulation=2)
    training.run(batches_of(10), max_epochs=2)
    equal(
        training.state(), plain_training(accumulation=2).run(batches_of(10), max_epochs=2).state()
    )
    assert [iteration for iteration, _ in held.states] == [0, 8, 18]
    assert not held.saves


def test_deferred_looks_do_not_wait_in_a_step():
    def waits(training, batches):
        with Waits() as counted:
            training.run(batches)
        return counted.count

    # Adam on a processor counts its steps there; what is left are the looks.
    at_each = waits(plain_training(), batches_of(17)) - waits(plain_training(), batches_of(1))
    _, training = deferring()
    _, short = deferring()
    assert waits(training, batches_of(17)) - waits(short, batches_of(1)) <= at_each - 16 + 4


def test_flags_are_made_where_the_gradients_are():
    flags = finite_flags([torch.tensor(1.0)], [torch.ones(2, device="meta")])
    assert (flags.device.type, flags.shape) == ("meta", (2,))


def test_losses_are_looked_at_where_nothing_has_a_gradient():
    assert finite_flags([torch.tensor(1.0)], []).tolist() == [True]
    assert finite_flags([torch.tensor(1.0), torch.tensor(torch.inf)], []).tolist() == [False]
    bad = torch.tensor([1.0, torch.nan])
    assert finite_flags([], [torch.ones(1), bad]).tolist() == [True, True, False]
