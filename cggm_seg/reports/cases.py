"""Scores of cases in a report: headline, table, distribution, and what absent modalities cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from cggm.display import Line, LineChart, bootstrap_interval
from cggm.errors import UserError
from cggm.reports import (
    Card,
    Column,
    Section,
    cards,
    figure,
    metric_card,
    plain_table,
    sortable_table,
)
from cggm.runs import NUMBER, Metric, RunFolder, check_form, find_metric, read_json
from cggm_seg.data import has_simulated_cases
from cggm_seg.evaluation import METRICS, REGION_NAMES
from cggm_seg.reports.examples import EXAMPLES

Row = Mapping[str, float]


@dataclass(frozen=True)
class CaseSet:
    """Scored cases, and where their volumes lie.

    Args:
        title: Of its section.
        noun: What the cases are, in the plural.
        rows: Case to metrics: ``dice_mean``, ``dice_WT`` and so on, ``hd95_*`` in mm where known.
        predictions: Folder of the label maps, ``None`` where it is not known.
        reference: Folder of the labelled cases, likewise.
        problems: A sentence for each case that was not scored.
        labels: Case to its label scheme, where known.
    """

    title: str
    noun: str
    rows: Mapping[str, Row]
    predictions: Path | None
    reference: Path | None
    problems: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice by case."""
        return {case: row["dice_mean"] for case, row in self.rows.items()}

    @cached_property
    def simulated(self) -> bool:
        """Whether the cases are simulated."""
        return self.reference is not None and has_simulated_cases(self.reference)


def read_evaluation(file: Path) -> CaseSet:
    """What ``brats_evaluate.py --output`` wrote.

    Args:
        file: The JSON file; without ``predictions`` and ``reference`` no volume is shown.

    Raises:
        UserError: If it is no evaluation.
    """
    try:
        content = read_json(file)
        check_form(content, _EVALUATION_FORM, file)
    except UserError as error:
        found = error.what.removeprefix(f"{file}: ")
        raise UserError(f"{file}: expected metrics by case; {found}", _EVALUATE) from error
    rows = {case: _with_mean(row) for case, row in content["rows"].items()}
    one, other = (Path(content[key]) if content.get(key) else None for key in _FOLDERS)
    problems, labels = list(content["problems"]), content.get("labels", {})
    if not rows:
        raise UserError(f"{file}: expected metrics by case, but it has none.", _EVALUATE)
    return CaseSet("Evaluation", "evaluated cases", rows, one, other, problems, labels)


def read_validation(run: RunFolder) -> CaseSet | None:
    """Dice of a run's validation cases, ``None`` where the run kept none.

    Args:
        run: The run.
    """
    file = run.path / "validation.json"
    if not file.exists():
        return None
    content = read_json(file)
    check_form(content, _VALIDATION_FORM, file)
    rows = {row["case"]: {k: v for k, v in row.items() if k != "case"} for row in content["rows"]}
    noun = "validation cases, which selected the weights"
    folders = (run.path / EXAMPLES, Path(content["data"]))
    return CaseSet("Validation", noun, rows, *folders, labels=content.get("labels", {}))


_EVALUATE = "Give a file that brats_evaluate.py wrote with --output."
_FOLDERS = ("predictions", "reference")
_DICE = dict.fromkeys((f"dice_{region}" for region in REGION_NAMES), float)
_SCORES = {**{f"{name}?": float for name in METRICS if name not in _DICE}, **_DICE}
_EVALUATION_FORM = {
    "rows": {"*": {**_SCORES, "*": NUMBER}},
    "problems": [str],
    "labels?": {"*": str},
    **dict.fromkeys((f"{folder}?" for folder in _FOLDERS), (str, None)),
    "*": object,
}
_VALIDATION_FORM = {
    "data": str,
    "labels?": {"*": str},
    "rows": [{"case": str, **_SCORES, "dice_mean": float, "*": NUMBER}],
    "*": object,
}


def _with_mean(row: Row) -> Row:
    return {"dice_mean": fmean(row[f"dice_{region}"] for region in REGION_NAMES), **row}


_SHOWN = ("dice_mean", *METRICS)


def headline_section(found: Sequence[CaseSet], validation: Row | None) -> Section:
    """Mean metrics over cases, with bootstrap intervals.

    Args:
        found: Sets of cases, the most important first.
        validation: Means without cases, shown where no set is there.
    """
    parts = [Markup("<h3>{}</h3>{}").format(s.title, _cards(s)) for s in found]
    if not parts and validation:
        means = [metric_card(find_metric(k), v) for k, v in validation.items()]
        parts = [cards(means, "Means over the validation cases, which selected the weights.")]
    return Section("Results", Markup().join(parts))


def cases_section(scores: CaseSet) -> Section:
    """All cases in a sortable table, the worst first, and how their scores are spread.

    Args:
        scores: At least one case.
    """
    ordered = sorted(scores.rows, key=lambda case: (scores.dice[case], case))
    columns = [Column("case", ordered)] + [
        Column(
            metric.heading,
            [scores.rows[case][metric.name] for case in ordered],
            metric.digits,
            heat=metric.name == "dice_mean",
            scale=(0.0, 1.0),
        )
        for metric in _metrics(scores)
    ]
    caption = f"{len(ordered)} {scores.noun}, the worst mean Dice first"
    body = sortable_table(caption, columns, sorted_by=1) + _spread(scores)
    problems = Markup().join(Markup("<li>{}</li>").format(p) for p in scores.problems)
    left_out = Markup('<h3>Not scored</h3><ul class="warnings">{}</ul>').format(problems)
    return Section(f"{scores.title} case by case", body + (left_out if problems else ""))


def missing_section(subsets: Mapping[str, Row], split: Mapping[str, Any]) -> Section:
    """What cases lack, and Dice for every subset of modalities as a heat map.

    Args:
        subsets: Modalities joined by ``+`` to mean Dice by region; empty where not measured.
        split: Cases in ``training`` and ``validation``, and by modality those ``lacking`` it; empty
            where not known.
    """
    return Section("Missing modalities", _lacking(split) + _subsets(subsets))


def _lacking(split: Mapping[str, Any]) -> Markup:
    """How many cases of each role lack a modality; empty where none does."""
    lacking = split.get("lacking", {})
    if not lacking:
        return Markup()
    roles = {role: set(split.get(role, ())) for role in ("training", "validation")}
    columns = [Column("modality", list(lacking))] + [
        Column(
            f"{role} cases without it, of {len(ids)}",
            [float(len(ids.intersection(cases))) for cases in lacking.values()],
            digits=0,
        )
        for role, ids in roles.items()
    ]
    return plain_table("Cases that lack modalities", columns)


def _subsets(subsets: Mapping[str, Row]) -> Markup:
    if len(subsets) < 2:
        return Markup()
    metrics = [
        Column(m.label, [row[m.name] for row in subsets.values()], heat=True, scale=(0.0, 1.0))
        for m in map(find_metric, _SHOWN[:4])
    ]
    head = Column("modalities", [key.replace("+", " + ") for key in subsets])
    counts = [row["cases"] for row in subsets.values() if "cases" in row]
    counted = [Column("cases that have them", counts, digits=0)] if counts else []
    table = plain_table(
        f"Mean Dice of the validation cases for {len(subsets)} subsets of modalities",
        [head, *metrics, *counted],
    )
    note = "Absent modalities are zero-filled, as in training; the stronger the color, the better."
    if counts:
        note += " A subset is measured on the cases that have all of it."
    return Markup('{}<p class="note">{}</p>').format(table, note)


def _metrics(scores: CaseSet) -> list[Metric]:
    """Those that every case has, in the order that they are shown."""
    return [find_metric(m) for m in _SHOWN if all(m in row for row in scores.rows.values())]


def _cards(scores: CaseSet) -> Markup:
    shown = [
        _card(metric, [row[metric.name] for row in scores.rows.values()])
        for metric in _metrics(scores)
    ]
    # As few cases as have no interval, see cggm.display.intervals.
    intervals = "; 95 % bootstrap intervals of the mean over cases" if len(scores.rows) >= 5 else ""
    note = (
        f"Means over {len(scores.rows)} {scores.noun}{intervals}. "
        f"WT, TC, ET: {', '.join(REGION_NAMES.values())}."
    )
    return cards(shown, note)


def _card(metric: Metric, values: Sequence[float]) -> Card:
    return metric_card(metric, float(np.mean(values)), bootstrap_interval(values))


def _spread(scores: CaseSet) -> Markup:
    """Each metric's own values in order, so that a line says how many cases lie below a value."""
    if len(scores.rows) < 5:
        return Markup()
    share = np.linspace(0, 100, len(scores.rows))
    lines = [
        Line(region, share, np.sort([row[f"dice_{region}"] for row in scores.rows.values()]), i)
        for i, region in enumerate(REGION_NAMES)
    ]
    title = "Dice of the cases, from worst to best"
    return Markup("<h3>Spread</h3>") + figure(LineChart(title, lines, "% of the cases", named=True))
