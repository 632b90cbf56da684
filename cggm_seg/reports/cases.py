"""Scores of cases in a report: headline, table, distribution, and missing modalities."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from cggm.comparison import bootstrap_interval
from cggm.errors import UserError
from cggm.reports import (
    Card,
    Column,
    Line,
    Section,
    cards,
    line_chart,
    metric_card,
    plain_table,
    sortable_table,
)
from cggm.runs import Metric, RunFolder, find_metric, write_atomically
from cggm_seg.data import Case, find_cases, read_case, read_labels, write_labels
from cggm_seg.evaluation import METRICS
from cggm_seg.inference import predict_volume
from cggm_seg.networks import MultiEncoderDeepLabV3Plus

Row = Mapping[str, float]
_REGIONS = {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}


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
    """

    title: str
    noun: str
    rows: Mapping[str, Row]
    predictions: Path | None
    reference: Path | None
    problems: Sequence[str] = ()

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice by case."""
        return {case: row["dice_mean"] for case, row in self.rows.items()}

    @property
    def simulated(self) -> bool:
        """Whether the cases are those of a simulated cohort."""
        return self.reference is not None and (self.reference / "cohort.json").is_file()


def read_evaluation(file: Path) -> CaseSet:
    """What ``brats_evaluate.py --output`` wrote.

    Args:
        file: The JSON file; without ``predictions`` and ``reference`` no volume is shown.

    Raises:
        UserError: If it is no evaluation.
    """
    content = _read_set(file)
    try:
        rows = {case: _with_mean(row) for case, row in content["rows"].items()}
        folders = [Path(content[key]) if content.get(key) else None for key in _FOLDERS]
        problems = list(content["problems"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_evaluation(file) from error
    if not rows:
        raise _no_evaluation(file)
    return CaseSet("Evaluation", "evaluated cases", rows, folders[0], folders[1], problems)


def read_validation(run: RunFolder) -> CaseSet | None:
    """Dice of a run's validation cases, ``None`` where the run kept none.

    Args:
        run: The run.
    """
    file = run.path / "validation.json"
    if not file.exists():
        return None
    content = _read_set(file)
    rows = {row["case"]: {k: v for k, v in row.items() if k != "case"} for row in content["rows"]}
    noun = "validation cases, which selected the weights"
    return CaseSet("Validation", noun, rows, run.path / FOLDER, Path(content["data"]))


_FOLDERS = ("predictions", "reference")


def _with_mean(row: Row) -> Row:
    return {"dice_mean": fmean(row[f"dice_{region}"] for region in _REGIONS), **row}


def _read_set(file: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise _no_evaluation(file) from error


def _no_evaluation(file: Path) -> UserError:
    return UserError(
        f"{file}: expected metrics by case, but it cannot be read as such.",
        "Give a file that brats_evaluate.py wrote with --output.",
    )


FOLDER = "examples"
"""Predictions of the validation cases that the report of a run shows."""


@dataclass(frozen=True)
class Example:
    """One case with truth and prediction.

    Args:
        role: ``"worst"``, ``"median"`` or ``"best"``.
        case_id: Its identifier.
        dice: Mean Dice of its regions.
        images: Intensities by modality, 0 outside the brain, LPS, shape ``(H, W, Z)`` each.
        truth: Classes 0 background, 1 NCR, 2 ED, 3 ET, uint8, shape ``(H, W, Z)``.
        prediction: Likewise.
        spacing: Size of a voxel in mm.
    """

    role: str
    case_id: str
    dice: float
    images: Mapping[str, np.ndarray]
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]


def choose_examples(dice: Mapping[str, float]) -> dict[str, str]:
    """Case by role; fewer than three where there are fewer cases.

    Args:
        dice: Mean Dice by case, of at least one.
    """
    ordered = sorted(dice, key=lambda case: (dice[case], case))
    places = {"worst": 0, "best": len(ordered) - 1, "median": (len(ordered) - 1) // 2}
    chosen = {ordered[places[role]]: role for role in ("median", "best", "worst")}
    roles = {role: case for case, role in chosen.items()}
    return {role: roles[role] for role in ("worst", "median", "best") if role in roles}


def keep_validation(
    run: RunFolder,
    network: MultiEncoderDeepLabV3Plus,
    data: Path,
    rows: Sequence[Mapping[str, float | str]],
) -> None:
    """Write ``validation.json`` and, into ``examples``, predictions of the cases of the report.

    Args:
        run: The finished run.
        network: With the weights of the best checkpoint, on its device.
        data: Folder of the cases.
        rows: Dice of each validation case, see
            :func:`cggm_seg.training.validation.evaluate_cached`.
    """
    record = {"data": str(data.resolve()), "rows": rows}
    write_atomically(run.path / "validation.json", json.dumps(record, indent=2).encode())
    dice = {str(row["case"]): float(row["dice_mean"]) for row in rows}
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    for case in _find(data, choose_examples(dice).values()).values():
        volumes = read_case(case)
        seen = [[*case.images].index(name) for name in network.modalities]
        prediction = predict_volume(network, volumes.images[seen])
        write_labels(folder / f"{case.id}.nii.gz", prediction, volumes.header, case.naming)


def read_examples(dice: Mapping[str, float], predictions: Path, reference: Path) -> list[Example]:
    """Read the worst, median and best case that are there.

    Args:
        dice: Mean Dice by case.
        predictions: Folder of the label maps.
        reference: Folder of the labelled cases.

    Raises:
        DataError: If a file is damaged, or the reference holds no case.
    """
    roles = choose_examples(dice)
    cases = _find(reference, roles.values())
    return [
        _read(role, cases[case_id], dice[case_id], predictions / f"{case_id}.nii.gz")
        for role, case_id in roles.items()
        if case_id in cases and (predictions / f"{case_id}.nii.gz").exists()
    ]


def _find(folder: Path, wanted: Collection[str]) -> dict[str, Case]:
    cases, _ = find_cases(folder, labelled=True)
    return {case.id: case for case in cases if case.id in wanted}


def _read(role: str, case: Case, dice: float, file: Path) -> Example:
    volumes = read_case(case)
    prediction, _ = read_labels(file, case.id, case.naming)
    assert volumes.label is not None
    spacing = np.linalg.norm(volumes.affine[:3, :3], axis=0).tolist()
    images = dict(zip(case.images, volumes.images, strict=True))
    return Example(role, case.id, dice, images, volumes.label, prediction, tuple(spacing))


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


def subsets_section(subsets: Mapping[str, Row]) -> Section:
    """Dice for every subset of modalities as a heat map.

    Args:
        subsets: Modalities joined by ``+`` to mean Dice by region; empty where not measured.
    """
    if len(subsets) < 2:
        return Section("Missing modalities", Markup())
    metrics = [
        Column(m.label, [row[m.name] for row in subsets.values()], heat=True, scale=(0.0, 1.0))
        for m in map(find_metric, _SHOWN[:4])
    ]
    head = Column("modalities", [key.replace("+", " + ") for key in subsets])
    table = plain_table(
        f"Mean Dice of the validation cases for all {len(subsets)} subsets of modalities",
        [head, *metrics],
    )
    note = "Absent modalities are zero-filled, as in training; the stronger the color, the better."
    return Section("Missing modalities", Markup('{}<p class="note">{}</p>').format(table, note))


def _metrics(scores: CaseSet) -> list[Metric]:
    """Those that every case has, in the order that they are shown."""
    return [find_metric(m) for m in _SHOWN if all(m in row for row in scores.rows.values())]


def _cards(scores: CaseSet) -> Markup:
    shown = [
        _card(metric, [row[metric.name] for row in scores.rows.values()])
        for metric in _metrics(scores)
    ]
    note = (
        f"Means over {len(scores.rows)} {scores.noun}; 95 % bootstrap intervals of the mean over "
        f"cases. WT, TC, ET: {', '.join(_REGIONS.values())}."
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
        for i, region in enumerate(_REGIONS)
    ]
    return Markup("<h3>Spread</h3>") + line_chart(
        "Dice of the cases, from worst to best", lines, x_label="% of the cases", named=True
    )
