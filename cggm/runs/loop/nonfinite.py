"""The guard against losses and gradients that are not finite: they end a run, or cost one step."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import chain
from pathlib import Path
from types import MethodType
from typing import Any, Self

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm.balancer import Balancer
from cggm.distributed import gather_objects, sum_over_ranks
from cggm.errors import UserError
from cggm.runs.loop.deferred import DeferredLooks, SeenStep, finite_flags
from cggm.tensors import without_subclass

_SHOWN = 16  # samples in a message


class RunningStatistics:
    """A copy of all buffers of some modules, among them BatchNorm's running statistics.

    Args:
        modules: Whose buffers to keep; they may change, but not be replaced.
    """

    def __init__(self, *modules: nn.Module) -> None:
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for buffer in nn.ModuleList(modules).buffers():
            alike[buffer.device, buffer.dtype].append(buffer)
        self._pairs = [(held, [b.clone() for b in held]) for held in alike.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy what the buffers hold now."""
        for held, kept in self._pairs:
            torch._foreach_copy_(kept, held)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers what :meth:`keep` found."""
        for held, kept in self._pairs:
            torch._foreach_copy_(held, kept)


@dataclass
class _Window:
    """What was seen since the optimizer last stepped.

    Attributes:
        scale: Loss scale of the GradScaler when the window was opened.
        samples: Identifiers of the samples.
        losses: Of the batches before the present one.
        batches: How many there were, with the present one.
    """

    scale: float = 1.0
    samples: list[str] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    batches: int = 0


class NonFiniteGuard:
    """Keeps losses and gradients that are not finite away from the weights.

    They are looked at when the optimizer is about to step; a step that is refused is not made, as
    if by a ``GradScaler``: weights, state of the optimizer and of the balancer, and running
    statistics are those from before. Without ``skip`` the run then ends with a message that names
    the samples. ``engine.state.skipped_steps`` counts what was skipped in the epoch.

    Whether to step is for the host to decide, so it waits for the device once a step, unless
    ``deferred`` says how to look now and then: steps are then made at once, and where a look finds
    a bad one the run ends with the state that was held from before it. All ranks decide alike: what
    one rank finds is every rank's. With a GradScaler its own check comes first, an overflow is its
    affair, and only a loss that is not finite, or a scale that has fallen below 1, is refused here.

    The loss is looked at in engines that leave ``{"loss": ...}`` in ``engine.state.output`` before
    they step, as MONAI's do; in others through the gradients alone.

    Args:
        network: The network.
        optimizer: Its optimizer; the guard stands before its ``step`` from :meth:`attach` until
            :meth:`detach`.
        balancer: The method, bound when the engine starts; ``None`` for a training without.
        names: A batch to the identifiers of its samples.
        save: Keeps the state, given the completed iterations, before the run ends; returns where.
        skip: Whether to go on without such steps.
        most_skipped: Share of an epoch's steps, in [0, 1]; the run ends when more are skipped. One
            is always allowed.
        deferred: How to look now and then instead of at each step, where the run ends at the first
            bad one: not with ``skip``, not with a GradScaler, and not with several ranks.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        balancer: Balancer | None,
        *,
        names: Callable[[Any], Sequence[str]],
        save: Callable[[int], Path],
        skip: bool = False,
        most_skipped: float = 0.1,
        deferred: DeferredLooks | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.balancer = balancer
        self.skip = skip
        self.most_skipped = most_skipped
        self.deferred = deferred
        self._names_of = names
        self._save = save
        self._engine: Engine | None = None
        self._statistics: RunningStatistics
        self._window = _Window()
        self._earlier_output: object = None
        self._earlier_step: Any = None  # where the optimizer had one of its own
        self._fine: bool | None = None  # nothing known yet of the present batch

    @property
    def waiting(self) -> bool:
        """Whether gradients wait for a step because the window of an accumulation is open."""
        return self._window.batches > 0

    def attach(self, engine: Engine) -> Self:
        """Attach to a training engine, before it runs; returns this guard."""
        self._engine = engine
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._close)
        self._earlier_step = vars(self.optimizer).get("step")
        # A method, because schedulers of PyTorch that are made later look for its __func__.
        guarded = MethodType(self._guarding(), self.optimizer)
        self.optimizer.step = guarded  # type: ignore[method-assign]
        return self

    def detach(self) -> None:
        """Put the optimizer's ``step`` back and let go of the engine; nothing where that is so."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        engine.remove_event_handler(self._start, Events.STARTED)
        engine.remove_event_handler(self._start_epoch, Events.EPOCH_STARTED)
        engine.remove_event_handler(self._open, Events.ITERATION_STARTED)
        engine.remove_event_handler(self._close, Events.ITERATION_COMPLETED)
        if getattr(self.optimizer.step, "guard", None) is not self:
            return  # another wrapper came later: ours stays inside of it and does nothing
        del self.optimizer.step  # the class's shows again
        if self._earlier_step is not None:
            self.optimizer.step = self._earlier_step

    def check(self) -> None:
        """Look now; a loop that clips calls this first, since clipping spreads what is not finite.

        Raises:
            UserError: If something is not finite and the run must end.
        """
        if self._fine is None and self.deferred is None:
            self._fine = self._all_finite([*self._window.losses, *self._loss(), self._norm()])
            if not self._fine:
                self._refuse()

    def settle(self) -> None:
        """Look at the steps that were made without; before anything of them is used or kept.

        Raises:
            UserError: If one of them was bad. The state from before it is saved.
        """
        found = None if self.deferred is None else self.deferred.look()
        if found is None or self.deferred is None:
            return
        step, finite = found
        done, where = self.deferred.save_held()
        moved = [what for what, fine in zip(step.moved, finite[1:], strict=True) if not fine]
        reason = _described(step.losses, step.samples, _owners(moved, self.balancer))
        kept = f"The weights are those from after step {done}, before it, in {where}."
        raise _ended(step.epoch, step.iteration, reason, kept, skip=False)

    def _guarding(self) -> Callable[..., Any]:
        step = self.optimizer.step

        @wraps(step)
        def guarded(_: Optimizer, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
            if self._engine is None:
                return step(*arguments, **keywords)
            # An optimizer that skips on the device, for a GradScaler, holds scaled gradients.
            if getattr(self.optimizer, "found_inf", None) is None:
                self.check()
            if self.deferred is not None:
                self.deferred.add(self._seen())
            self._window.batches = 0
            return None if self._fine is False else step(*arguments, **keywords)

        guarded.guard = self  # type: ignore[attr-defined]
        return guarded

    def _start(self, engine: Engine) -> None:
        methods = [] if self.balancer is None else [self.balancer]
        self._statistics = RunningStatistics(self.network, *methods)
        self._window = _Window()
        self._start_epoch(engine)
        if self.deferred is not None:
            self.deferred.hold(engine.state.iteration)

    def _start_epoch(self, engine: Engine) -> None:
        engine.state.skipped_steps = 0  # type: ignore[attr-defined]

    def _open(self, engine: Engine) -> None:
        if not self.waiting:
            self._window = _Window(self._scale())
            if self.deferred is None:
                self._statistics.keep()
            elif self.deferred.due:
                self.settle()
                self.deferred.hold(engine.state.iteration - 1)
        self._window.batches += 1
        self._window.samples += self._names_of(engine.state.batch)
        self._earlier_output = engine.state.output
        self._fine = None

    def _close(self, engine: Engine) -> None:
        if engine.state.iteration % (engine.state.epoch_length or 1) == 0:
            self.settle()  # before what follows at the end of an epoch
        if not self.waiting:
            return
        self._window.losses += self._loss()
        scale = self._scale()
        if scale < self._window.scale:  # the GradScaler skipped the step
            if scale < 1 or not self._all_finite(self._window.losses):
                self._refuse()
            self._window.batches = 0

    def _loss(self) -> list[Tensor]:
        """The loss of this iteration, where the engine tells before its step."""
        assert self._engine is not None
        output: Any = self._engine.state.output
        if output is self._earlier_output or not isinstance(output, Mapping):
            return []
        loss = output.get("loss")
        return [without_subclass(loss.detach())] if isinstance(loss, Tensor) else []

    def _scale(self) -> float:
        """Loss scale of the engine's GradScaler."""
        engine = self._engine
        state = getattr(engine, "state", None)
        scaler = getattr(engine, "scaler", None) or getattr(state, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _seen(self) -> SeenStep:
        """The step that is about to be made, without waiting for its numbers."""
        assert self._engine is not None
        state, losses = self._engine.state, [*self._window.losses, *self._loss()]
        found: dict[nn.Parameter | str, Tensor] = {
            parameter: parameter.grad
            for parameter in self._parameters()
            if parameter.grad is not None
        }
        found.update(_head_gradients(self.balancer).items())
        flags = finite_flags(losses, [*found.values()])
        return SeenStep(
            state.epoch, state.iteration, [*self._window.samples], losses, [*found], flags
        )

    def _norm(self) -> Tensor:
        own = [p.grad for p in self._parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm([*own, *_head_gradients(self.balancer).values()])

    def _parameters(self) -> list[nn.Parameter]:
        """What is about to move: the optimizer's parameters, and the heads."""
        groups = (group["params"] for group in self.optimizer.param_groups)
        heads = () if self.balancer is None else self.balancer.parameters()
        return [*chain.from_iterable(groups), *heads]

    def _all_finite(self, values: Sequence[Tensor]) -> bool:
        device = next(self.network.parameters()).device
        finite = torch.stack([v.to(device).isfinite().all() for v in values or [torch.zeros(())]])
        (refusing_ranks,) = sum_over_ranks([(~finite.all()).float()])
        return not bool(refusing_ranks)

    def _refuse(self) -> None:
        """Put everything back, then count the step or end the run."""
        assert self._engine is not None
        window, parameters = self._window, self._parameters()
        reason = _reason([*window.losses, *self._loss()], window.samples, parameters, self.balancer)
        self._statistics.restore()
        for parameter in parameters:
            parameter.grad = None
        if self.balancer is not None:
            self.balancer.abandon()
        state: Any = self._engine.state
        state.skipped_steps += 1
        steps = (state.epoch_length or 1) / window.batches
        if self.skip and state.skipped_steps <= max(1, self.most_skipped * steps):
            return
        self._end(reason, state)

    def _end(self, reason: str, state: Any) -> None:  # noqa: ANN401
        done = state.iteration - self._window.batches
        where = self._save(done)
        kept = f"The weights are those from before this step, in {where}."
        if not done:
            kept = "No step had been taken, so nothing was saved."
        if self.skip:
            kept = f"{state.skipped_steps} steps of this epoch were skipped for that. {kept}"
        raise _ended(state.epoch, state.iteration, reason, kept, skip=self.skip)


def _ended(epoch: int, iteration: int, reason: str, kept: str, *, skip: bool) -> UserError:
    advice = "Look at these samples, or lower the learning rate"
    way_out = "." if skip else "; --skip_nonfinite goes on without them."
    what = f"Epoch {epoch}, iteration {iteration}: {reason}. {kept}"
    return UserError(what, f"{advice}{way_out}")


def _reason(
    losses: Sequence[Tensor],
    samples: Sequence[str],
    parameters: Sequence[nn.Parameter],
    balancer: Balancer | None,
) -> str:
    """Say what is not finite, and on which samples; all ranks call it together.

    Args:
        losses: Of this rank since the last step.
        samples: Identifiers of the samples of this rank since the last step.
        parameters: With the gradients that were about to be used.
        balancer: The method, bound; its encoders and heads are what a gradient is named after.

    Returns:
        A clause such as ``the loss is nan on the samples a, b``. Samples of ranks whose loss is
        finite are left out where another rank's is not.
    """
    moved: list[nn.Parameter | str] = [
        p for p in parameters if p.grad is not None and not bool(p.grad.isfinite().all())
    ]
    of_heads = _head_gradients(balancer).items()
    moved += [name for name, gradient in of_heads if not bool(gradient.isfinite().all())]
    return _described(losses, samples, _owners(moved, balancer))


def _described(losses: Sequence[Tensor], samples: Sequence[str], parts: Sequence[str]) -> str:
    bad = [float(loss) for loss in losses if not bool(loss.isfinite().all())]
    reports = gather_objects((bad, samples))
    guilty = [report for report in reports if report[0]]
    if guilty:
        what = f"the loss is {guilty[0][0][0]}"
    else:
        named = " and of ".join(parts) or "the scaled loss"
        what = f"the gradient of {named} is not finite"
    names = list(dict.fromkeys(name for _, given in guilty or reports for name in given))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} on the samples {', '.join(names[:_SHOWN])}{more}" if names else what


def _head_gradients(balancer: Balancer | None) -> dict[str, Tensor]:
    """What heads learn from since the last step, by head and parameter; no ``grad`` has it."""
    if balancer is None or balancer.heads is None:
        return {}
    return balancer.heads.window.named("gradient/")


def _owners(moved: Sequence[nn.Parameter | str], balancer: Balancer | None) -> list[str]:
    """Encoders, heads and the rest that own parameters, or gradients of heads by their names."""
    parts: dict[str, nn.Module] = {}
    if balancer is not None:
        heads = {} if balancer.heads is None else dict(balancer.heads.items())
        parts |= {f"encoder {name}": module for name, module in balancer.binding.encoders.items()}
        parts |= {f"head {name}": module for name, module in heads.items()}
    owner = {id(p): name for name, module in parts.items() for p in module.parameters()}
    rest = "the rest of the network" if parts else "the network"
    names = (
        f"head {one.partition('.')[0]}" if isinstance(one, str) else owner.get(id(one), rest)
        for one in moved
    )
    return list(dict.fromkeys(names))
