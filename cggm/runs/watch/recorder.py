"""The record of a training in any loop: readings, losses and metrics, without an engine."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import yaml
from torch import Tensor, nn

from cggm import Balancer, BalanceRecorder, Chain
from cggm.binding import follow
from cggm.distributed import is_first_rank
from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm.runs.metrics import find_metric, keep_metrics
from cggm.runs.options import SessionOptions
from cggm.runs.storage import write_atomically, write_json
from cggm.runs.watch.curves import CurveRefresh, plot_curves
from cggm.runs.watch.logs import JsonLines, read_jsonl


class RunRecorder:
    """Follows a balancer through a bare loop, Lightning, Accelerate or any other host.

    Within ``with RunRecorder(balancer, folder):`` every optimizer step leaves a line in
    ``balance.jsonl``, as :class:`cggm.BalanceRecorder` writes it, whose ``iteration`` counts the
    balancer's optimizer steps; a step that was skipped leaves none. At the end there are curves,
    and ``cggm report FOLDER`` makes a page of it all. Nothing is waited for within a step.

    Losses are those of the first rank. The log is complete whenever the balancer's state is taken
    for a checkpoint. Where a state of an earlier training is loaded, before or after the recorder
    is opened, lines of later steps go.

    Do not use it beside a :class:`cggm.runs.session.Session`, which records by itself.

    Args:
        balancer: The method, bound or not yet.
        folder: The folder of the run, a new one unless the training goes on.
        every: Optimizer steps between lines; each costs a pass over the encoders' gradients.
        seed: Of the training, for its report.
        curves: Whether curves are drawn, now and then and in the end.
        simulated: Whether the data are, which every picture and page then says.

    Raises:
        UserError: In the first step, if the folder holds the log of another training.

    Example::

        with RunRecorder(balancer, "runs/mine") as record:
            for epoch in range(1, 11):
                train(epoch)
                record.end_epoch(epoch, {"accuracy": validate()})
    """

    def __init__(
        self,
        balancer: Balancer,
        folder: Path | str,
        *,
        every: int = 1,
        seed: int | None = None,
        curves: bool = True,
        simulated: bool = False,
    ) -> None:
        self.balancer = balancer
        self.run = RunFolder(Path(folder))
        self._lines = BalanceRecorder(balancer, self.run.balance, every=every)
        self._seed, self._simulated = seed, simulated
        self._curves = CurveRefresh(self.run, simulated=simulated) if curves else None
        self._hooks: list[Any] = []
        self._calls = self._steps = 0
        self._waiting: tuple[int, Tensor] | None = None  # epoch and loss until the optimizer steps
        self._sum, self._count = torch.zeros(()), 0
        self._last: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._hooks = follow(self.balancer, self._before, self._after, lambda *_: self.flush())
        self._started = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()
        for hook in self._hooks:
            hook.remove()
        if error is not None or not self._started or not is_first_rank():
            return
        metrics = {k.removeprefix("val_"): v for k, v in self._last.items() if k[:4] == "val_"}
        epochs = self._last.get("epoch", self.balancer.clock.current)
        split = {"validation": metrics} if metrics else {}
        results = {"max_epochs": epochs, "simulated": self._simulated, **split}
        write_json(self.run.results, results)
        if self._curves is not None:
            plot_curves(self.run, simulated=self._simulated)

    def flush(self) -> None:
        """Write the lines of all steps made so far."""
        self._complete()
        self._lines.flush()

    def end_epoch(self, epoch: int, metrics: Mapping[str, float] | None = None) -> None:
        """Write a line of ``metrics.jsonl``: the epoch's mean loss, and what a validation measured.

        Args:
            epoch: The epoch, counted from 1.
            metrics: Values by the names of registered metrics, see
                :func:`cggm.runs.metrics.register_metrics`; ``loss`` is one.

        Raises:
            UserError: If a metric is not registered.
        """
        measured = {f"val_{find_metric(name).name}": v for name, v in (metrics or {}).items()}
        self.flush()
        mean = float(self._sum) / self._count if self._count else None
        self._sum, self._count = torch.zeros(()), 0
        self._last = {"epoch": epoch, "iteration": self.balancer.clock.steps, "train_loss": mean}
        self._last |= measured
        if is_first_rank():
            self._start()
            with JsonLines(self.run.metrics) as log:
                log.write(self._last)
            if self._curves is not None:
                self._curves.draw_if_cheap()

    def _before(self, balancer: nn.Module, arguments: Any) -> None:  # noqa: ANN401
        self._complete()
        self._calls, self._steps = self.balancer.calls, self.balancer.clock.steps
        if self.balancer.binding.active:
            self._start()
            self._lines.prepare(self._steps + 1)

    def _after(self, balancer: nn.Module, arguments: Any, loss: Tensor) -> None:  # noqa: ANN401
        if self.balancer.calls == self._calls:
            return  # an evaluation
        self._waiting = (self.balancer.clock.current, loss.detach())
        self._sum = self._sum.to(loss.device) + loss.detach()
        self._count += 1

    def _complete(self) -> None:
        """Keep the line of the last call if the optimizer stepped after it."""
        steps = self.balancer.clock.steps
        if self._waiting is not None and steps == self._steps + 1:
            self._lines.record(steps, *self._waiting)
            self._waiting = None

    def _start(self) -> None:
        """Make the folder, and drop what lies beyond the state that the training goes on from."""
        if self._started:
            return
        self._started = True
        if not is_first_rank():
            return
        self.run.make()
        steps = self.balancer.clock.steps
        if not steps and self.run.balance.exists() and read_jsonl(self.run.balance):
            raise UserError(
                f"{self.run.path}: expected the folder of a new run, but it holds the log of one, "
                "and the balancer has made no step yet.",
                "Give another folder, or load the balancer's state before the first step.",
            )
        for log in (self.run.balance, self.run.metrics):
            with JsonLines(log) as lines:
                lines.truncate_after(iteration=steps)
        keep_metrics(self.run.metric_records)
        seed = {} if self._seed is None else {"seed": self._seed}
        config = {"task": SessionOptions.task, **seed, **method_record(self.balancer)}
        write_atomically(self.run.config, yaml.safe_dump(config, sort_keys=False).encode())
        self.run.write_environment(resumed_at=steps)


def method_record(balancer: Balancer) -> dict[str, Any]:
    """A method as a configuration says it, as far as the object tells.

    Args:
        balancer: The method; a chain is told by its parts.
    """
    parts = balancer.parts if isinstance(balancer, Chain) else [balancer]
    name = "+".join(type(part).__name__ for part in parts)
    return {"balancer": {"name": name, "settings": {}}}
