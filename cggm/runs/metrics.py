"""Metrics: what a number of a run is called, which direction is better, and how it is written."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cggm.errors import UserError
from cggm.runs.storage import read_json, write_json

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """All that is said of a metric: selection, tables, reports and comparisons read it here.

    Args:
        name: Key in ``results.json`` and, behind ``val_``, in ``metrics.jsonl``.
        label: What readers call it, as in "mean Dice".
        direction: Which values are better, ``"higher"`` or ``"lower"`` ones.
        digits: Behind the decimal point where its values are shown.
        unit: Such as ``"mm"``; empty for a share or a score.
        counts: Whether it is a share of samples, which a single one moves by about 1/N: such a
            difference ranks nothing.

    Raises:
        ValueError: If the name is no word, the direction is another one or there are fewer than no
            digits.
    """

    name: str
    label: str
    direction: Direction
    digits: int = 3
    unit: str = ""
    counts: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name):
            raise ValueError(
                f"Expected `name` to be of letters, digits and _, but got {self.name!r}."
            )
        if self.direction not in get_args(Direction):
            raise ValueError(
                f"Expected `direction` of {self.name} to be 'higher' or 'lower', "
                f"but got {self.direction!r}."
            )
        if self.digits < 0:
            raise ValueError(
                f"Expected `digits` of {self.name} of at least 0, but got {self.digits}."
            )

    @property
    def lower_is_better(self) -> bool:
        """Whether it is an error or a distance."""
        return self.direction == "lower"

    @property
    def heading(self) -> str:
        """Its label with its unit, for the head of a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def score(self, value: float) -> float:
        """The value with the sign that makes higher ones better, as the selection wants it."""
        return -value if self.lower_is_better else value

    def text(self, value: float | None) -> str:
        """A value in a table for a terminal, a hyphen where it is undefined."""
        return "-" if value is None else f"{value:.{self.digits}f}"


_known: dict[str, Metric] = {}


def register_metrics(*metrics: Metric) -> None:
    """Make metrics known to selection, tables, reports and comparisons.

    A module that computes metrics registers them beside the functions that do.

    Args:
        metrics: Their records; the same record may come again.

    Raises:
        ValueError: If another record has one of the names.
    """
    for metric in metrics:
        if _known.setdefault(metric.name, metric) != metric:
            raise ValueError(
                f"Expected one record of the metric {metric.name!r}, but got {metric} beside "
                f"{_known[metric.name]}."
            )


def is_registered(name: str) -> bool:
    """Whether :func:`find_metric` finds a metric."""
    return name in _known


def find_metric(name: str) -> Metric:
    """The record of a metric.

    Args:
        name: Its key, without ``val_``.

    Raises:
        UserError: If no such metric was registered; its direction is never guessed.
    """
    if name not in _known:
        raise UserError(
            f"Unknown metric {name!r}: nothing says which direction of it is better.",
            f'Register it where it is computed, cggm.runs.register_metrics(Metric("{name}", ...)); '
            f"known: {', '.join(sorted(_known)) or 'none'}.",
        )
    return _known[name]


def selection_score(metrics: Mapping[str, Any], name: str) -> float:
    """What selects a checkpoint, higher is better.

    Args:
        metrics: Values of a validation by name.
        name: The metric that selects.

    Raises:
        UserError: If the metric is not registered.
        KeyError: If the validation did not give it.
    """
    return find_metric(name).score(float(metrics[name]))


def keep_metrics(file: Path) -> None:
    """Write all registered records to a file of a run, for programs that register others.

    Args:
        file: The file, see ``metric_records``.
    """
    write_json(file, [asdict(metric) for metric in _known.values()])


def learn_metrics(file: Path) -> None:
    """Register what :func:`keep_metrics` wrote, apart from metrics that are known already.

    Args:
        file: The file; nothing is learnt where there is none, as in runs of early versions.

    Raises:
        UserError: If it is damaged, or takes the other direction of a known metric for better.
    """
    for values in read_json(file, list, missing_ok=True):
        try:
            metric = Metric(**values)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{file}: expected records of metrics, but one is of another form: {error}.",
                "Delete the file; metrics that the project knows need none.",
            ) from error
        known = _known.setdefault(metric.name, metric)
        if known.direction != metric.direction:
            raise UserError(
                f"{file}: {metric.direction} values of the metric {metric.name} are better there, "
                f"{known.direction} ones here.",
                "Give one of the two another name.",
            )


register_metrics(Metric("loss", "loss", "lower"))
