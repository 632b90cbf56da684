"""The metrics of a run in MLflow, for who keeps all trainings in one place."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm.runs.loop import Stopped
from cggm.runs.options import SessionOptions
from cggm.runs.storage import read_json, write_json
from cggm.runs.watch.logs import scalars

_EXPERIMENT = "cggm"


def require_mlflow() -> None:
    """Refuse a run that asks for MLflow where it is not installed.

    Raises:
        UserError: If so.
    """
    if find_spec("mlflow") is None:
        raise UserError(
            "--mlflow needs the package mlflow, but it is not installed.",
            'Install it with pip install "cggm[mlflow]", or leave --mlflow out.',
        )


class MLflowLog:
    """One run of MLflow, which a resumed training continues.

    A folder gets MLflow's own database and nothing is sent; ``mlflow ui --backend-store-uri
    sqlite:///<folder>/mlflow.db`` shows it. Steps are epochs. ``mlflow.json`` in the run folder
    says where a resumed training continues. An epoch that was killed between its logs and its
    checkpoint is logged twice, with the same numbers. Once the server fails, the training goes on
    without it.

    Args:
        where: Folder, or URI of a tracking server or database.
        run: The run folder; its name is the run's.
        config: Its values become the run's parameters.

    Raises:
        UserError: If MLflow cannot be used there.
    """

    def __init__(self, where: str, run: RunFolder, config: SessionOptions) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # on by default; read on import
        from ignite.handlers.mlflow_logger import MLflowLogger
        from mlflow.exceptions import MlflowException

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._where, self._error = where, MlflowException
        self._failed = False
        try:
            self._start(where, run, config)
            self._logger = MLflowLogger()
        except (MlflowException, OSError) as error:
            raise UserError(
                f"--mlflow {where} cannot be used: {_first_line(error)}.",
                "Give a folder, or the URI of a server that answers.",
            ) from error

    def write(self, record: Mapping[str, Any], *, step: int) -> None:
        """Log the numbers of a record, see :func:`cggm.runs.watch.logs.scalars`.

        Args:
            record: Numbers by name, possibly nested.
            step: The epoch.
        """
        if not self._failed:
            self._try(lambda: self._logger.log_metrics(dict(scalars(record)), step=step))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        status = "FINISHED" if error is None else "KILLED" if stopped else "FAILED"
        self._try(lambda: self._logger.end_run(status))

    def _try(self, log: Callable[[], object]) -> None:
        """Days of training do not end because a server does not answer."""
        try:
            log()
        except self._error as error:
            if not self._failed:
                what = f"MLflow at {self._where} failed, the run goes on without it"
                print(f"{what}: {_first_line(error)}", file=sys.stderr, flush=True)
            self._failed = True

    def _start(self, where: str, run: RunFolder, config: SessionOptions) -> None:
        import mlflow

        own = run.mlflow
        if own.exists():
            known = read_json(own)
            mlflow.set_tracking_uri(known["tracking_uri"])
            mlflow.start_run(known["run_id"])
            return
        uri = _tracking_uri(where)
        mlflow.set_tracking_uri(uri)
        if mlflow.get_experiment_by_name(_EXPERIMENT) is None:
            mlflow.create_experiment(_EXPERIMENT, _artifacts(where))
        mlflow.set_experiment(_EXPERIMENT)
        active = mlflow.start_run(run_name=run.path.resolve().name)
        record = {"tracking_uri": uri, "run_id": active.info.run_id}
        write_json(own, record)
        mlflow.log_params(dict(_parameters(asdict(config))))


def _tracking_uri(where: str) -> str:
    if "://" in where:
        return where
    folder = Path(where).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _artifacts(where: str) -> str | None:
    """Where artifacts of a folder go; a server decides for itself."""
    return None if "://" in where else (Path(where).resolve() / "artifacts").as_uri()


def _parameters(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _parameters(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
