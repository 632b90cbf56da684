"""Ignite handlers: attach a balancer to an engine that exists, and record what it measures."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Self

import torch
from ignite.engine import Engine, Events
from ignite.engine.events import CallableEventWithFilter
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cggm.balancer import Balancer
from cggm.distributed import is_first_rank


class BalanceHandler:
    """Attaches a balancer to an Ignite or MONAI engine.

    - MONAI's ``SupervisedTrainer``: ``BalanceHandler(balancer).attach(trainer)``, or among
      ``train_handlers``. The loss is replaced at ``LOSS_COMPLETED``.
    - Ignite's ``create_supervised_trainer``: ``BalanceHandler(balancer, network).attach(trainer)``.
      Such a trainer closes over its loss; what the balancer adds to it flows back through the
      network's output instead, which costs a second evaluation of the task loss.
    - A custom engine that calls ``balancer(prediction, target)`` itself, on a bound balancer:
      ``BalanceHandler(balancer).attach(trainer)`` forwards epochs and publishes readings.

    Binds when the engine starts and unbinds when it completes, unless the balancer was bound
    before. ``engine.state.balance`` holds the last readings: name to a tensor of one value per
    modality, on the device.

    Args:
        balancer: The method.
        network: The network that the engine calls, with its DDP or ``torch.compile`` wrapper.
            Needed by Ignite's own trainer alone.
        prepare_batch: As given to the trainer: ``(batch, device, non_blocking)`` to the pair of
            input and target. The default takes a batch that is such a pair.
        model_transform: As given to the trainer.
        scaler: As given to the trainer, where it is a GradScaler; one that the trainer made itself
            is found.
        accumulation_steps: As given to the trainer (``gradient_accumulation_steps``).
        identify: A batch to the positions of its samples in the training data, ``(B,)``, for
            methods that remember samples (QMF).
        present: A batch to the masks of :meth:`cggm.Balancer.present`, where samples lack
            modalities.

    Raises:
        ValueError: If ``accumulation_steps`` is not positive.
    """

    def __init__(
        self,
        balancer: Balancer,
        network: nn.Module | None = None,
        *,
        prepare_batch: Callable[..., Sequence[Any]] | None = None,
        model_transform: Callable[[Any], Any] = lambda output: output,
        scaler: torch.amp.GradScaler | None = None,
        accumulation_steps: int = 1,
        identify: Callable[[Any], Tensor] | None = None,
        present: Callable[[Any], Mapping[str, Tensor | bool]] | None = None,
    ) -> None:
        if accumulation_steps < 1:
            raise ValueError(f"Expected `accumulation_steps` >= 1, but got {accumulation_steps}.")
        self.balancer = balancer
        self.network = network
        self.prepare_batch = prepare_batch or _pair
        self.model_transform = model_transform
        self.scaler = scaler
        self.accumulation_steps = accumulation_steps
        self.identify = identify
        self.present = present
        self._binds = False
        self._engine: Engine | None = None
        self._output_hook: RemovableHandle | None = None

    def attach(self, engine: Engine) -> Self:
        """Attach to a training engine, before it runs; returns this handler."""
        monai = _loss_completed(engine)
        if monai is not None:
            engine.add_event_handler(monai, self._replace_loss)
        engine.add_event_handler(Events.STARTED, self._start, monai is not None)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._identify)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._publish)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._complete)
        return self

    def _start(self, engine: Engine, monai: bool) -> None:
        self._engine = engine
        self.scaler = self.scaler or getattr(engine.state, "scaler", None)
        network = getattr(engine, "network", None) if monai else self.network
        if monai and network is None:
            raise ValueError(
                f"Expected a trainer of one network, but {type(engine).__name__} has no `network`. "
                "Call the balancer in `iteration_update` yourself."
            )
        if self._binds:
            self.balancer.unbind()
        self._binds = not self.balancer.bound
        if self._binds and network is None:
            raise ValueError(
                "Expected a bound balancer or a network to bind, but got neither. "
                "Pass `network=`, or call `balancer.bind(network)` first."
            )
        if self._binds:
            self.balancer.bind(network)
        if not monai and network is not None:
            self._remove_output_hook()
            self._output_hook = self.balancer.binding.on_output(network, self._add_to_output)
        self.balancer.train()

    def _start_epoch(self, engine: Engine) -> None:
        self.balancer.start_epoch(engine.state.epoch)

    def _identify(self, engine: Engine) -> None:
        if self.identify is not None:
            self.balancer.identify(self.identify(engine.state.batch))
        if self.present is not None:
            self.balancer.present(self.present(engine.state.batch))

    def _end_epoch(self, engine: Engine) -> None:
        self.balancer.end_epoch(engine.state.epoch)

    def _complete(self, engine: Engine) -> None:
        self._remove_output_hook()
        if self._binds:
            self.balancer.unbind()
        self._binds = False

    def _remove_output_hook(self) -> None:
        if self._output_hook is not None:
            self._output_hook.remove()

    def _publish(self, engine: Engine) -> None:
        if self.balancer.calls == 0:
            raise RuntimeError(
                f"Expected the engine to call {type(self.balancer).__name__} in every iteration, "
                "but it did not. Pass `network=` for a trainer that has its own loss function."
            )
        engine.state.balance = self.balancer.readings  # type: ignore[attr-defined]

    def _replace_loss(self, engine: Engine) -> None:
        if engine.loss_function is self.balancer:  # type: ignore[attr-defined]
            return
        output: Any = engine.state.output
        output["loss"] = self.balancer(output["pred"], output["label"], output["loss"])

    def _add_to_output(self, output: Any) -> Any:  # noqa: ANN401
        if not isinstance(output, Tensor):
            raise TypeError(
                f"Expected the network to return a tensor, but got {type(output).__name__}. "
                "Call the balancer in an engine of your own."
            )
        assert self._engine is not None
        self._check_window()
        prediction = self.model_transform(output)
        _, target = self.prepare_batch(self._engine.state.batch, output.device, False)
        loss = self.balancer.task_loss(prediction, target)
        extra = self.balancer(prediction, target, loss) - loss
        factor = torch.ones_like(extra)
        if self.scaler is not None:
            factor = self.scaler.scale(factor)
        return _Joined.apply(output, extra, factor / self.accumulation_steps)

    def _check_window(self) -> None:
        if self.balancer.micro_batches >= self.accumulation_steps and self.scaler is None:
            raise RuntimeError(
                f"Expected an optimizer step every {self.accumulation_steps} iterations, but "
                f"{self.balancer.micro_batches} passed without one. "
                "Pass the trainer's gradient_accumulation_steps as `accumulation_steps=`."
            )


class BalanceRecorder:
    """Writes a balancer's readings as JSON lines, without a host synchronization per step.

    Each line holds ``iteration``, ``epoch``, ``loss`` and, by modality, ``score``, ``raw_term`` (by
    equation (7)), ``term`` (the factor in use), ``cosine``, ``head_loss`` and ``gradient_norm``,
    the Euclidean norm of each encoder's gradient as the optimizer sees it, all of the same
    optimizer step; iterations without a step have no norm. Attach it after the
    :class:`BalanceHandler`; a loop without an engine calls :meth:`prepare`, :meth:`record` and
    :meth:`flush`. Only the first rank writes.

    Args:
        balancer: The method.
        path: File to append to.
        every: Iterations between lines; the norms cost a pass over the encoders' gradients.
        flush_every: Lines kept on the device before they are written.
    """

    def __init__(
        self, balancer: Balancer, path: Path | str, *, every: int = 1, flush_every: int = 50
    ) -> None:
        if every < 1 or flush_every < 1:
            raise ValueError(f"Expected positive intervals, but got {every} and {flush_every}.")
        self.balancer = balancer
        self.path = Path(path)
        self.every = every
        self.flush_every = flush_every
        self._rows: list[tuple[int, int, dict[str, Tensor]]] = []
        self._names: list[str] = []

    def attach(self, engine: Engine) -> Self:
        """Attach to a training engine; returns this recorder."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self._complete)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.flush)
        engine.add_event_handler(Events.COMPLETED, self.flush)
        return self

    def flush(self) -> None:
        """Write the lines kept so far."""
        if not self._rows:
            return
        lines = [json.dumps(self._line(*row)) + "\n" for row in self._rows]
        self._rows.clear()
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def prepare(self, iteration: int) -> None:
        """Say that an iteration begins, counted from 1, before its optimizer step."""
        self._names = self.balancer.binding.names
        self.balancer.measure_norms = iteration % self.every == 0

    def record(self, iteration: int, epoch: int, loss: Tensor) -> None:
        """Keep the readings of an iteration that is over.

        Args:
            iteration: Its number, counted from 1; one that is not due is passed over.
            epoch: Its epoch, counted from 1.
            loss: What was back-propagated, a scalar without a graph.
        """
        if not is_first_rank() or iteration % self.every:
            return
        readings = {**self.balancer.readings, "loss": loss}
        if self.balancer.norms is not None and self.balancer.micro_batches == 0:
            readings["gradient_norm"] = self.balancer.norms
        self._rows.append((iteration, epoch, readings))
        if len(self._rows) >= self.flush_every:
            self.flush()

    def _start(self, engine: Engine) -> None:
        self.prepare(engine.state.iteration)

    def _complete(self, engine: Engine) -> None:
        self.record(engine.state.iteration, engine.state.epoch, loss_of(engine.state.output))

    def _line(self, iteration: int, epoch: int, readings: dict[str, Tensor]) -> dict[str, Any]:
        line: dict[str, Any] = {"iteration": iteration, "epoch": epoch}
        for name, value in readings.items():
            numbers = [x if isfinite(x) else None for x in value.flatten().tolist()]
            line[name] = dict(zip(self._names, numbers, strict=True)) if value.ndim else numbers[0]
        return line


class _Joined(torch.autograd.Function):
    """Identity of a prediction whose backward also starts an extra loss's."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, extra: Tensor, factor: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(factor)
        return prediction.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        return gradient, ctx.saved_tensors[0], None


def _loss_completed(engine: Engine) -> CallableEventWithFilter | None:
    """MONAI's event after the loss, which its engines register before handlers are attached."""
    events = (e for e in engine._allowed_events if getattr(e, "value", None) == "loss_completed")
    return next(events, None)  # type: ignore[return-value]


def loss_of(output: Any) -> Tensor:  # noqa: ANN401
    """The loss in an engine's output, without its graph; NaN where there is none.

    Args:
        output: The loss, as a number or a tensor of one element, a mapping with the ``"loss"``, or
            a sequence that begins with one of these.
    """
    if isinstance(output, list | tuple) and output:
        output = output[0]
    if isinstance(output, dict):
        output = output.get("loss")
    if isinstance(output, Tensor) and output.numel() == 1:
        return output.detach().reshape(())
    return torch.tensor(float(output) if isinstance(output, float | int) else float("nan"))


def _pair(batch: Any, device: torch.device, non_blocking: bool) -> Sequence[Any]:  # noqa: ANN401
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise TypeError(
            f"Expected a batch that is a pair of input and target, but got {type(batch).__name__}. "
            "Pass the trainer's `prepare_batch` to BalanceHandler."
        )
    inputs, target = batch
    return inputs, target.to(device, non_blocking=non_blocking) if isinstance(
        target, Tensor
    ) else target
