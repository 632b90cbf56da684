"""The journal of a training while it runs: metrics, TensorBoard, MLflow, times, curves."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from ignite.engine import Engine, Events

from cggm.distributed import is_first_rank
from cggm.runs.folder import RunFolder
from cggm.runs.metrics import find_metric, keep_metrics
from cggm.runs.options import SessionOptions
from cggm.runs.watch.curves import CurveRefresh
from cggm.runs.watch.logs import JsonLines, Picture, TensorBoardLog
from cggm.runs.watch.mlflow import MLflowLog, require_mlflow


class StepTimes:
    """Seconds that the steps of a training took; what happens between epochs is left out.

    Attributes:
        loading: Seconds of waiting for batches.
        stepping: Seconds from a batch to the end of its step.
    """

    def __init__(self) -> None:
        self.loading = self.stepping = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow a training; steps end where this handler's turn comes after an iteration."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._before_batch)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._after_batch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)

    def restart(self) -> None:
        """Count from 0 again."""
        self.loading = self.stepping = 0.0

    def _before_batch(self) -> None:
        self._mark = time.monotonic()

    def _after_batch(self) -> None:
        self.loading += self._lap()

    def _after_step(self) -> None:
        self.stepping += self._lap()

    def _lap(self) -> float:
        """Seconds since the last lap."""
        before, self._mark = self._mark, time.monotonic()
        return self._mark - before


class Stopwatch:
    """Seconds of a training since they were last asked for, validations included."""

    def __init__(self) -> None:
        self._steps = StepTimes()
        self._mark = time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Follow a training."""
        self._steps.attach(engine)

    def lap(self) -> dict[str, float]:
        """``seconds`` since the last lap, and the ``loading_seconds`` among them."""
        before, self._mark = self._mark, time.monotonic()
        waited = self._steps.loading
        self._steps.restart()
        return {"seconds": self._mark - before, "loading_seconds": waited}


class Journal:
    """Writes what is measured epoch by epoch, into the run folder and where the user asked for it.

    Of several ranks the first one writes; to the others it is silent.

    Args:
        run: Folder to write to.
        config: Says whether there are curves and MLflow.
        picture: Draws what the network makes of a fixed part of the validation data, changing
            nothing; none where not given.
        simulated: Whether the data are, which the curves say.

    Raises:
        UserError: If MLflow is asked for and not installed.
    """

    def __init__(
        self,
        run: RunFolder,
        config: SessionOptions,
        *,
        picture: Callable[[], Picture] | None = None,
        simulated: bool = False,
    ) -> None:
        if config.mlflow is not None:
            require_mlflow()
        self.folder = run
        self._config, self._picture, self._simulated = config, picture, simulated
        self._stopwatch = Stopwatch()
        self._resumed_at: int | None = None
        self._metrics: JsonLines | None = None  # open on the first rank, while it trains
        self._times: JsonLines
        self._events: TensorBoardLog
        self._mlflow: MLflowLog | None = None
        self._curves: CurveRefresh | None

    def attach(self, engine: Engine) -> None:
        """Follow a training, to tell how long it waits for data."""
        self._stopwatch.attach(engine)

    def cut(self, *, epoch_end: int, iteration: int) -> None:
        """Drop what lies beyond the checkpoint that a run continues from.

        Args:
            epoch_end: Last iteration of the last completed epoch.
            iteration: That of the checkpoint.
        """
        self._resumed_at = epoch_end
        if not is_first_rank():
            return
        for path, last in ((self.folder.metrics, epoch_end), (self.folder.balance, iteration)):
            with JsonLines(path) as lines:
                lines.truncate_after(iteration=last)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Everything is open inside of it, and closed with how the training ended."""
        if not is_first_rank():
            yield
            return
        run, config = self.folder, self._config
        keep_metrics(run.metric_records)
        with ExitStack() as stack:
            if config.mlflow is not None:
                self._mlflow = stack.enter_context(MLflowLog(config.mlflow, run, config))
            events = TensorBoardLog(run.tensorboard, resumed_at=self._resumed_at)
            self._events = stack.enter_context(closing(events))
            self._times = stack.enter_context(JsonLines(run.timing))
            self._metrics = stack.enter_context(JsonLines(run.metrics))
            curves = CurveRefresh(run, simulated=self._simulated)
            self._curves = curves if config.curves else None
            self._stopwatch.lap()
            stack.callback(self.note_time)
            yield

    def write(self, record: Mapping[str, Any], readings: Mapping[str, Any]) -> None:
        """Log an epoch.

        Args:
            record: Its numbers by name, among them ``epoch`` and ``iteration``; where there are
                metrics of a validation, ``val_...``, a picture is drawn.
            readings: Of the balancer, by name and modality; ``metrics.jsonl`` goes without them.

        Raises:
            UserError: If a metric of the validation is not registered.
        """
        if self._metrics is None:
            return
        for name in record:
            if name.startswith("val_"):  # one that nobody can read is better refused now
                find_metric(name.removeprefix("val_"))
        iteration = record["iteration"]
        self._metrics.write(record)
        self._events.write({**record, **readings}, iteration=iteration)
        if self._picture and any(name.startswith("val_") for name in record):
            self._events.show(self._picture(), iteration=iteration)
        if self._mlflow:
            self._mlflow.write({**record, **readings}, step=record["epoch"])

    def note_time(self) -> None:
        """Write how long the training took since the last time, so that a killed run knows."""
        if self._metrics is not None:
            self._times.write(self._stopwatch.lap())

    def draw(self) -> None:
        """Draw the curves anew where that is cheap enough."""
        if self._metrics is not None and self._curves is not None:
            self._curves.draw_if_cheap()
