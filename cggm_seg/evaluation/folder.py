"""Scores of a folder of predictions, by the rules of BraTS 2021 or 2023."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Literal

import numpy as np
from tqdm import tqdm

from cggm.display import aligned
from cggm.distributed import gather_shards, is_first_rank, shard
from cggm.errors import DataError, UserError
from cggm.runs import file_digest, find_metric, parse_json
from cggm.tensors import subsets_of
from cggm_seg.data import Case, LabelScheme, find_cases, label_scheme, read_labels
from cggm_seg.evaluation.lesions import lesion_metrics
from cggm_seg.evaluation.regions import REGIONS
from cggm_seg.evaluation.scores import METRICS, Row, case_metrics

_AFFINE_TOLERANCE = 1e-3  # mm
_PREDICTION = re.compile(r"(?P<case>[^.].*)\.nii(\.gz)?", re.IGNORECASE)

Rule = Literal["brats2021", "brats2023"]


def evaluate_case(case: Case, file: Path, rule: Rule) -> Row:
    """Scores one predicted label map against its reference.

    Args:
        case: A labelled case.
        file: The prediction; its label values are those that its record tells, else those of the
            reference.
        rule: ``brats2021`` scores whole volumes, see
            :func:`cggm_seg.evaluation.scores.case_metrics`, ``brats2023`` lesions, see
            :func:`cggm_seg.evaluation.lesions.lesion_metrics`.

    Returns:
        The keys of :data:`cggm_seg.evaluation.scores.METRICS`.

    Raises:
        DataError: If a file cannot be read, or their grids differ.
    """
    assert case.label is not None
    wanted, wanted_grid = read_labels(case.label, case.id, case.labels)
    found, found_grid = read_labels(file, case.id, written_labels(case, file))
    if found.shape != wanted.shape:
        what = f"Expected shape {wanted.shape} as of {case.label}, but found {found.shape}."
        raise DataError(case.id, file, what, "Predict on the grid of the case's images.")
    affine, expected = found_grid.affine, wanted_grid.affine
    if not np.allclose(affine, expected, rtol=0, atol=_AFFINE_TOLERANCE):
        what = f"Expected the affine {expected.tolist()} of {case.label}, found {affine.tolist()}."
        raise DataError(case.id, file, what, "Keep the affine of the case's images.")
    score = lesion_metrics if rule == "brats2023" else case_metrics
    return score(found, wanted, tuple(np.linalg.norm(expected[:3, :3], axis=0).tolist()))


def written_labels(case: Case, file: Path) -> LabelScheme:
    """What the record of an inference says of this very file, or else the reference's scheme.

    Args:
        case: The case, with the label scheme of the reference.
        file: Its predicted label map.
    """
    name = f"{case.id}.json"
    try:
        record = parse_json((file.parent / "records" / name).read_bytes())
        if record["outputs"][file.name] == file_digest(file):
            return label_scheme(record["naming"]) or case.labels
    except (OSError, ValueError, TypeError, KeyError, UserError):  # no record, or one of old
        pass
    return case.labels


_STATISTICS: dict[str, tuple[str, Callable[[list[float]], float]]] = {  # name, label, function
    "mean": ("mean", fmean),
    "std": ("sample SD", lambda values: stdev(values) if len(values) > 1 else math.nan),
    "median": ("median", median),
}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a folder of predictions.

    Attributes:
        rows: Case to metrics, the keys of :data:`cggm_seg.evaluation.scores.METRICS`; HD95 in mm.
        statistics: ``mean``, ``std`` (of the sample of cases, over n - 1, not of the mean; NaN of a
            single case) and ``median`` of each metric.
        missing: Cases of the reference without a prediction that can be scored; they enter no
            statistic.
        problems: One sentence for each case that is not scored, and for each surplus file.
        rule: How a case is scored, see :func:`cggm_seg.evaluation.folder.evaluate_case`.
        labels: Case to the label scheme of its reference.
    """

    rows: dict[str, Row]
    statistics: dict[str, Row]
    missing: list[str]
    problems: list[str]
    rule: Rule = "brats2021"
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over all cases and the three regions."""
        rows = self.rows.values()
        return float(np.mean([[row[f"dice_{region}"] for region in REGIONS] for row in rows]))

    def table(self) -> str:
        """One line per case and statistic, Dice in 0-1 and HD95 in mm."""
        metrics = [find_metric(name) for name in METRICS]
        labelled = {_STATISTICS[name][0]: row for name, row in self.statistics.items()}
        rows = [
            [name, *(metric.text(_known(row[metric.name])) for metric in metrics)]
            for name, row in (self.rows | labelled).items()
        ]
        head, *body = aligned([["case", *(metric.label for metric in metrics)], *rows])
        rule = "-" * len(head)
        return "\n".join([head, rule, *body[: len(self.rows)], rule, *body[len(self.rows) :]])

    def to_json(self, *, predictions: Path, reference: Path) -> str:
        """All attributes, indented, and where the two folders are, which a report reads."""
        where = {"predictions": predictions, "reference": reference}
        folders = {name: str(folder.resolve()) for name, folder in where.items()}
        statistics = {
            name: {metric: _known(value) for metric, value in row.items()}
            for name, row in self.statistics.items()
        }
        content = {**asdict(self), "statistics": statistics, **folders}
        return json.dumps(content, indent=2, allow_nan=False)


def evaluate_folder(
    predictions: Path,
    reference: Path,
    *,
    strict: bool = False,
    progress: bool = True,
    sharded: bool = False,
    rule: Rule = "brats2021",
    labels: LabelScheme | None = None,
) -> Evaluation:
    """Scores ``<predictions>/<case>.nii.gz`` against the label maps of a BraTS folder.

    Args:
        predictions: Label maps; where a record says with which labels they were written, these
            count, else those of the reference.
        reference: Labelled cases; their images may be missing.
        strict: Whether the first problem ends the evaluation.
        progress: Whether to show a progress bar on a terminal.
        sharded: Whether the ranks share the cases; every rank then calls this and gets the result.
        rule: How a case is scored, see :class:`Evaluation`.
        labels: What label values mean; told by names and contents where not given.

    Raises:
        UserError: If no prediction can be scored, or, with `strict`, at the first problem.
    """
    cases, errors = find_cases(reference, labelled=True, modalities=(), labels=labels)
    files, doubtful = _prediction_files(predictions)
    known = {case.id for case in cases} | {error.case for error in errors}
    missing = [case.id for case in cases if case.id not in files]
    problems: list[UserError] = [
        *errors,
        *(doubtful[name] for name in sorted(doubtful)),
        *(_unpredicted(name, predictions) for name in missing if name not in doubtful),
        *(_unknown(name, file) for name, file in files.items() if name not in known),
    ]
    if strict and problems:
        raise problems[0]
    paired = [(case, files[case.id]) for case in cases if case.id in files]
    mine = shard(paired) if sharded else paired
    hidden = None if progress and is_first_rank() else True  # None: shown on terminals alone
    bar = tqdm(mine, "Evaluating", unit="case", disable=hidden)
    scored = [_attempt(case, file, rule, strict) for case, file in bar]
    scored = gather_shards(scored) if sharded else scored
    problems += [outcome for outcome in scored if isinstance(outcome, DataError)]
    outcomes = zip(paired, scored, strict=True)
    rows = {case.id: row for (case, _), row in outcomes if not isinstance(row, DataError)}
    if not rows:
        raise _nothing_scored(predictions, reference, problems)
    said = [str(problem) for problem in problems]
    schemes = {case.id: case.labels.name for case in cases if case.id in rows}
    return Evaluation(rows, _statistics(rows), missing, said, rule, schemes)


def subset_names(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the largest first, in the order of `modalities`: 15 of four."""
    return sorted(subsets_of(modalities), key=len, reverse=True)


def _prediction_files(folder: Path) -> tuple[dict[str, Path], dict[str, DataError]]:
    """Case to label map, and why there is none for those that have two."""
    if not folder.is_dir():
        raise UserError(
            f"Expected a folder of predictions at {folder}, but there is none.",
            "Check the path.",
        )
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if match := _PREDICTION.fullmatch(file.name):
            found.setdefault(match["case"], []).append(file)
    doubtful = {name: _two(name, files) for name, files in found.items() if len(files) > 1}
    return {name: files[0] for name, files in found.items() if name not in doubtful}, doubtful


def _two(case_id: str, files: Sequence[Path]) -> DataError:
    names = " and ".join(file.name for file in files)
    what = f"Expected one prediction of this case, but found {names}."
    return DataError(case_id, files[0], what, "Remove the one that is not to be scored.")


def _unpredicted(case_id: str, folder: Path) -> DataError:
    what = "Expected a prediction of this case, but there is no such file."
    fix = "Predict the case, or take it out of the reference."
    return DataError(case_id, folder / f"{case_id}.nii.gz", what, fix)


def _unknown(name: str, file: Path) -> DataError:
    what = "Expected a case of this name in the reference, but there is none."
    fix = "Give the --reference that has this case, or take the prediction out of the folder."
    return DataError(name, file, what, fix)


def _attempt(case: Case, file: Path, rule: Rule, strict: bool) -> Row | DataError:
    try:
        return evaluate_case(case, file, rule)
    except DataError as error:
        if strict:
            raise
        return error


def _nothing_scored(predictions: Path, reference: Path, problems: Sequence[UserError]) -> UserError:
    what = (
        f"Expected predictions in {predictions} for the cases in {reference}, "
        "but none can be scored."
    )
    if not problems:
        return UserError(what, "Give the folder that brats_infer.py wrote.")
    return UserError(f"{what} The first problem: {problems[0]}", "Mend it, and then the others.")


def _statistics(rows: Mapping[str, Row]) -> dict[str, Row]:
    return {
        name: {metric: float(compute([row[metric] for row in rows.values()])) for metric in METRICS}
        for name, (_, compute) in _STATISTICS.items()
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
