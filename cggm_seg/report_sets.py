"""The sets of scored cases that a report shows: of an evaluation, and of a run's own validation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm_seg.report_examples import FOLDER

Row = Mapping[str, float]
REGIONS = {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}


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
    content = _read(file)
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
    content = _read(file)
    rows = {row["case"]: {k: v for k, v in row.items() if k != "case"} for row in content["rows"]}
    noun = "validation cases, which selected the weights"
    return CaseSet("Validation", noun, rows, run.path / FOLDER, Path(content["data"]))


_FOLDERS = ("predictions", "reference")


def _with_mean(row: Row) -> Row:
    return {"dice_mean": fmean(row[f"dice_{region}"] for region in REGIONS), **row}


def _read(file: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise _no_evaluation(file) from error


def _no_evaluation(file: Path) -> UserError:
    return UserError(
        f"{file}: expected metrics by case, but it cannot be read as such.",
        "Give a file that brats_evaluate.py wrote with --output.",
    )
