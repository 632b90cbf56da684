"""Report of a training on sequences: results, samples, single modalities, balance, training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from cggm.errors import UserError
from cggm.reports import (
    SIMULATED,
    Column,
    RunRecord,
    Section,
    balance_section,
    cards,
    metric_card,
    plain_table,
    provenance_section,
    training_section,
    write_page,
)
from cggm.runs import Metric, find_metric
from cggm_cls.metrics import by_importance, is_own
from cggm_cls.reports.classes import (
    Interval,
    calibration_section,
    class_intervals,
    confusion_section,
)
from cggm_cls.reports.samples import read_predictions
from cggm_cls.reports.values import scatter_section, value_intervals

Metrics = Mapping[str, Any]


def write_sequence_report(path: Path) -> Path:
    """Write ``report.html`` of a training.

    Args:
        path: The run folder, finished or not.

    Raises:
        UserError: If it is no run folder or a log is damaged.
    """
    record = RunRecord.read(path)
    results, kept = record.results, read_predictions(record.folder)
    test, classes = results.get("test", {}), results.get("classes") or ()
    _check_agreement(record, test, classes, kept)
    sections = [
        _headline(test, _intervals(test, kept)),
        *_samples(test, classes, kept),
        _subsets(test, results.get("subsets", {}), results.get("heads", {})),
        balance_section(record.balance),
        training_section(record),
        provenance_section(record),
    ]
    return write_page(
        path / "report.html",
        title=f"Training {record.name}",
        lead=f"{record.method}, {len(record.metrics)} epochs.",
        sections=sections,
        simulated=SIMULATED if _on_simulated(record) else "",
    )


def _check_agreement(
    record: RunRecord,
    test: Metrics,
    classes: Sequence[str],
    kept: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """Refuse results and predictions that are not of one run, as far as shapes tell."""
    confusion = test.get("confusion")
    size = len(confusion or ())
    fits = all(len(row) == size and min(row) >= 0 for row in confusion or ())
    if confusion is not None:
        fits = fits and any(map(any, confusion)) and len(classes) in (0, size)
    if kept is not None:
        prediction, target = kept
        fits = fits and len(target) > 0 and prediction.shape[1:] == (() if not size else (size,))
        fits = fits and (not size or (target.dtype.kind in "iu" and target.min() >= 0))
        fits = fits and (not size or target.max() < size)
    if not fits:
        raise UserError(
            f"{record.folder.results}: expected as many classes in the confusion matrix, in "
            "their names and in the predictions.",
            f"Get the run anew, or delete {record.folder.predictions.name}.",
        )


def _on_simulated(record: RunRecord) -> bool:
    """A run that is not finished does not tell; the demo data are the default."""
    return bool(record.results.get("simulated", record.config.get("data") is None))


def _intervals(test: Metrics, kept: tuple[np.ndarray, np.ndarray] | None) -> Mapping[str, Interval]:
    if "confusion" in test:
        return class_intervals(np.array(test["confusion"]))
    return value_intervals(*kept) if kept else {}


def _headline(test: Metrics, intervals: Mapping[str, Interval]) -> Section:
    numbers = {k: v for k, v in test.items() if not isinstance(v, list)}
    ordered = by_importance(numbers)
    shown = [metric_card(find_metric(k), numbers[k], intervals.get(k)) for k in ordered]
    note = (
        "Metrics of the test split with the weights that the validation selected"
        + ("; 95 % bootstrap intervals over test samples" if intervals else "")
        + "."
    )
    return Section("Results", cards(shown, note) if shown else Markup())


def _samples(
    test: Metrics, classes: Sequence[str], kept: tuple[np.ndarray, np.ndarray] | None
) -> list[Section]:
    if "confusion" in test:
        found = [confusion_section(np.array(test["confusion"]), classes)]
        return found + ([calibration_section(*kept)] if kept else [])
    return [scatter_section(*kept)] if kept else []


def _subsets(
    test: Metrics, subsets: Mapping[str, Metrics], heads: Mapping[str, Metrics]
) -> Section:
    """Metrics with modalities missing, and of each modality's head, as heat maps."""
    ordered = by_importance(name for name, value in test.items() if not isinstance(value, list))
    shown = [find_metric(n) for place, n in enumerate(ordered) if place < 3 or is_own(n)]
    groups = {
        "Test metrics with only some modalities present": {**subsets, "all": test},
        "Test metrics of each modality's head": heads,
    }
    tables = Markup().join(
        plain_table(caption, _columns(rows, shown))
        for caption, rows in groups.items()
        if set(rows) - {"all"}
    )
    return Section("Single modalities", tables)


def _columns(rows: Mapping[str, Metrics], shown: Sequence[Metric]) -> list[Column]:
    columns = [Column("modalities", [name.replace("+", " + ") for name in rows])]
    for metric in shown:
        values = [row.get(metric.name) for row in rows.values()]
        known = [v for v in values if v is not None]
        # A stronger color is better, whatever the direction of the metric.
        scale = (max(known), min(known)) if metric.lower_is_better and known else None
        columns.append(Column(metric.heading, values, metric.digits, heat=True, scale=scale))
    return columns
