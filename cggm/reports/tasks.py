"""Tasks: what can be trained, compared and reported, as a table that users can extend."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from cggm.errors import UserError
from cggm.runs import Metric, find_metric, is_registered, read_yaml

Report = Callable[[Path], Path]


@dataclass(frozen=True)
class Task:
    """A training script, and how its runs are compared and reported.

    Args:
        name: As in ``--task`` and in the first line of ``config.yaml``.
        script: The training script.
        modalities: What it trains on.
        metrics: Names of those that tables show, the most important one first.
        report: ``module:function`` that writes the report of a run folder; empty for the common
            one.
        quick: Configuration of a small size, ``None`` without one.
        imports: Modules that the script imports, to be loaded once for many trainings.
        described_by: ``module:function`` that tells ``modalities`` and ``metrics``, as far as it
            can, from the folder of the data, or from ``None`` for the demo's, where they differ.
    """

    name: str
    script: Path
    modalities: tuple[str, ...]
    metrics: tuple[str, ...]
    report: str = ""
    quick: Path | None = None
    imports: tuple[str, ...] = ()
    described_by: str = ""

    def of_data(self, folder: Path | None) -> "Task":
        """The task with the modalities and the metrics that the data have.

        Args:
            folder: Of the data; ``None`` for those of the demo.

        Raises:
            UserError: If the data are wrong, or there is no such function.
        """
        if not self.described_by:
            return self
        found: Mapping[str, Sequence[str]] = self._load("described_by")(folder)
        return replace(
            self,
            modalities=tuple(found.get("modalities", self.modalities)),
            metrics=tuple(found.get("metrics", self.metrics)),
        )

    def shown_metrics(self) -> list[Metric]:
        """Records of the metrics that tables show.

        Raises:
            UserError: If one is not registered, neither by a run that was read nor by the report.
        """
        if not all(is_registered(name) for name in self.metrics):
            self.load_report()  # runs of early versions kept no records
        return [find_metric(name) for name in self.metrics]

    def load_report(self) -> Report | None:
        """The function that writes a run's report, ``None`` for the common one.

        Loading it registers the metrics of the task's own package.

        Raises:
            UserError: If there is no such function.
        """
        return self._load("report") if self.report else None

    def _load(self, key: str) -> Callable[..., Any]:
        """The function that one of the task's values names."""
        what = f"Task {self.name}: expected `{key}` to be module:function"
        found: Callable[..., Any] = _load(getattr(self, key), what, "Correct the table of tasks.")
        return found


def load_tasks(file: Path) -> dict[str, Task]:
    """Tasks by name.

    Args:
        file: A YAML file in the form of ``configs/tasks.yaml``; paths in it are relative to it.

    Raises:
        UserError: If it cannot be read, or a task lacks something or has a key too many.
    """
    content = read_yaml(file)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file}: expected tasks by name.", "See configs/tasks.yaml.")
    return {str(name): _task(str(name), values, file) for name, values in content.items()}


def find_task(name: str, tasks: Mapping[str, Task]) -> Task:
    """A task of a table, or of somebody's own module.

    Args:
        name: Its name, or ``module:name`` of a :class:`Task` in a module that can be imported.
        tasks: The table.

    Raises:
        UserError: If there is none of that name, or the module's has the name of another one.
    """
    if ":" in name:
        found = _load(name, f"Expected {name} to be a task", "Correct --task, or PYTHONPATH.")
        if not isinstance(found, Task) or tasks.get(found.name, found) != found:
            kind = f"a task named {found.name}" if isinstance(found, Task) else type(found).__name__
            what = f"Expected {name} to be a cggm.reports.Task of a new name, but it is {kind}."
            raise UserError(what, f"Names of the table: {', '.join(tasks)}.")
        return found
    if name not in tasks:
        raise UserError(
            f"Unknown task {name!r}.",
            f"Available: {', '.join(tasks)}; or give a table of your own with --tasks, or "
            "module:name of a task in a module of your own.",
        )
    return tasks[name]


def _load(text: str, what: str, fix: str) -> Any:  # noqa: ANN401
    """What ``module:name`` stands for."""
    module, _, name = text.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what}, but {text!r} cannot be loaded: {error}.", fix) from error


def _task(name: str, values: Any, file: Path) -> Task:  # noqa: ANN401
    known = [field.name for field in fields(Task) if field.name != "name"]
    given = values if isinstance(values, dict) else {}
    wrong = [key for key in ("script", "modalities", "metrics") if not given.get(key)]
    wrong += [str(key) for key in given if key not in known]
    lists = ("modalities", "metrics", "imports")
    wrong += [key for key in lists if not isinstance(given.get(key, []), list)]
    wrong += [] if re.fullmatch(r"\w[\w.-]*", name) else ["its name"]
    if wrong:
        raise UserError(
            f"{file}: task {name}: missing, unknown or of another form: {', '.join(wrong)}.",
            f"Give script, modalities and metrics; known: {', '.join(known)}.",
        )
    parts: dict[str, Any] = {key: tuple(map(str, given.get(key, []))) for key in lists}
    quick = given.get("quick")
    parts["quick"] = None if quick is None else (file.parent / str(quick)).resolve()
    script = (file.parent / str(given["script"])).resolve()
    parts |= {key: str(given.get(key, "")) for key in ("report", "described_by")}
    return Task(name=name, script=script, **parts)
