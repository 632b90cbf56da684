"""Reports of a BraTS training and of an evaluation, each one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cggm.errors import UserError
from cggm.reports import (
    SIMULATED,
    RunRecord,
    Section,
    balance_section,
    provenance_section,
    training_section,
    write_page,
)
from cggm.runs import NUMBER, RunFolder, check_form, read_json
from cggm_seg.data import has_simulated_cases
from cggm_seg.reports.cases import (
    CaseSet,
    cases_section,
    headline_section,
    missing_section,
    read_evaluation,
    read_validation,
)
from cggm_seg.reports.examples import EXAMPLES, read_examples
from cggm_seg.reports.viewer import viewer_section

_EVALUATION = "evaluation.json"
_FEW = 10
_SPLIT = {"training?": [str], "validation?": [str], "lacking?": {"*": [str]}, "*": object}


def write_segmentation_report(path: Path) -> Path:
    """Write ``report.html`` of a training, with ``evaluation.json`` where its folder has one.

    Args:
        path: The run folder, finished or not.

    Raises:
        UserError: If it is no run folder or a file in it is damaged.
    """
    record = RunRecord.read(path)
    validation = read_validation(record.folder)
    evaluated = path / _EVALUATION
    sets = [
        *([read_evaluation(evaluated)] if evaluated.exists() else []),
        *([validation] if validation else []),
    ]
    return write_page(
        path / "report.html",
        title=f"BraTS segmentation: {record.name}",
        lead=f"{record.method}, {len(record.metrics)} epochs.",
        sections=[
            headline_section(sets, record.results.get("validation")),
            _viewer(sets),
            *map(cases_section, sets),
            missing_section(
                _kept(record.folder.subsets, {"*": {"*": NUMBER}}),
                _kept(record.folder.split, _SPLIT),
            ),
            balance_section(record.balance),
            training_section(record),
            provenance_section(record, _warnings(validation)),
        ],
        simulated=SIMULATED if _on_simulated(record, sets) else "",
    )


def report_evaluation(file: Path) -> Path:
    """Report what ``brats_evaluate.py --output`` wrote: in its run's report where it lies in a run.

    Args:
        file: The JSON file; outside of a run the report lies beside it and is named after it.

    Raises:
        UserError: If it is no evaluation.
    """
    if file.name == _EVALUATION and RunFolder(file.parent).config.exists():
        return write_segmentation_report(file.parent)
    own = read_evaluation(file)
    return write_page(
        file.with_suffix(".html"),
        title=f"BraTS evaluation: {file.stem}",
        lead=f"Predictions of {own.predictions or 'a folder'} against the labels of "
        f"{own.reference or 'another one'}.",
        sections=[headline_section([own], None), _viewer([own]), cases_section(own)],
        simulated=SIMULATED if own.simulated else "",
    )


def _viewer(sets: Sequence[CaseSet]) -> Section:
    """Cases of the first set whose volumes are there; else why there are none."""
    sections = [_examples(own) for own in sets]
    none = viewer_section([], "No predictions are kept; brats_evaluate.py in the run folder helps.")
    return next((s for s in sections if s.script), sections[0] if sections else none)


def _examples(own: CaseSet) -> Section:
    if own.predictions is None or own.reference is None:
        return viewer_section([], "The evaluation does not say where its volumes lie.")
    try:
        found = read_examples(
            own.dice,
            own.predictions,
            own.reference,
            own.labels,
            of_maps=own.predictions.name == EXAMPLES,  # scored as cached slices
        )
    except UserError as error:
        return viewer_section([], f"The volumes cannot be shown: {error}")
    note = f"Worst, median and best of the {own.noun} by mean Dice."
    gone = f"Volumes are no longer in {own.predictions} and {own.reference}."
    return viewer_section(found, note if found else gone)


def _warnings(validation: CaseSet | None) -> list[str]:
    if validation is None or len(validation.rows) >= _FEW:
        return []
    return [f"The weights were selected on few validation cases: {len(validation.rows)}."]


def _kept(file: Path, form: Mapping[str, Any]) -> dict[str, Any]:
    """What a run kept in a JSON file; nothing where there is none."""
    content: dict[str, Any] = read_json(file, missing_ok=True)
    check_form(content, form, file)
    return content


def _on_simulated(record: RunRecord, sets: Sequence[CaseSet]) -> bool:
    """Of an unfinished run the data folder tells; without one it trains on the demo cohort."""
    data = record.config.get("data")
    told = data is None or has_simulated_cases(Path(data))
    return record.results.get("simulated", told) or any(own.simulated for own in sets)
