"""Examples that a report shows: the worst, median and best case, with truth and prediction."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from cggm.runs import RunFolder, write_atomically
from cggm_seg.data import (
    Case,
    Cohort,
    find_cases,
    label_scheme,
    read_case,
    read_labels,
    write_labels,
)
from cggm_seg.evaluation import REGION_NAMES, region_mask, written_labels
from cggm_seg.inference import predict_volume
from cggm_seg.networks import MultiEncoderDeepLabV3Plus

EXAMPLES = "examples"
"""Predictions of the validation cases that the report of a run shows."""


@dataclass(frozen=True)
class Example:
    """One case with truth and prediction.

    Attributes:
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
    cohort: Cohort,
    rows: Sequence[Mapping[str, float | str]],
) -> None:
    """Write ``validation.json`` and, into ``examples``, predictions of the cases of the report.

    Args:
        run: The finished run.
        network: With the weights of the best checkpoint, on its device.
        cohort: The cases.
        rows: Dice of each validation case, see
            :func:`cggm_seg.training.validation.evaluate_cached`.
    """
    schemes = {str(row["case"]): cohort.cases[str(row["case"])].labels.name for row in rows}
    record = {"data": str(cohort.folder.resolve()), "rows": rows, "labels": schemes}
    write_atomically(run.path / "validation.json", json.dumps(record, indent=2).encode())
    dice = {str(row["case"]): float(row["dice_mean"]) for row in rows}
    folder = run.path / EXAMPLES
    folder.mkdir(exist_ok=True)
    for case_id in choose_examples(dice).values():
        case = cohort.cases[case_id]
        volumes = read_case(case)
        prediction = predict_volume(network, volumes.channels(network.modalities))
        write_labels(folder / f"{case.id}.nii.gz", prediction, volumes.grid, case.labels)


def read_examples(
    dice: Mapping[str, float],
    predictions: Path,
    reference: Path,
    labels: Mapping[str, str],
    *,
    of_maps: bool = False,
) -> list[Example]:
    """Read the worst, median and best case that are there.

    Args:
        dice: Mean Dice by case.
        predictions: Folder of the label maps.
        reference: Folder of the labelled cases.
        labels: Case to its label scheme; of others names and contents tell it.
        of_maps: Whether the Dice that is shown is that of the label map beside it, where ``dice``
            was measured on another prediction, as of cached slices and in another precision.

    Raises:
        DataError: If a file is damaged, or the reference holds no case.
    """
    roles = choose_examples(dice)
    cases = _find_labelled(reference, roles.values(), labels)
    found = [
        _read_example(role, cases[case_id], dice[case_id], predictions / f"{case_id}.nii.gz")
        for role, case_id in roles.items()
        if case_id in cases and (predictions / f"{case_id}.nii.gz").exists()
    ]
    return [replace(example, dice=_dice(example)) for example in found] if of_maps else found


def _dice(example: Example) -> float:
    """Mean over the regions, by whole volumes; 1 where a region is in neither."""
    scores = []
    for region in REGION_NAMES:
        found, wanted = (region_mask(x, region) for x in (example.prediction, example.truth))
        voxels = int(found.sum()) + int(wanted.sum())
        scores.append(2 * int((found & wanted).sum()) / voxels if voxels else 1.0)
    return fmean(scores)


def _find_labelled(
    folder: Path, wanted: Collection[str], labels: Mapping[str, str]
) -> dict[str, Case]:
    cases, _ = find_cases(folder, labelled=True, allow_missing=True, modalities=())
    return {
        case.id: replace(case, labels=label_scheme(labels.get(case.id)) or case.labels)
        for case in cases
        if case.id in wanted
    }


def _read_example(role: str, case: Case, dice: float, file: Path) -> Example:
    volumes = read_case(case)
    prediction, _ = read_labels(file, case.id, written_labels(case, file))
    assert volumes.label is not None
    images = dict(zip(case.images, volumes.images, strict=True))
    return Example(role, case.id, dice, images, volumes.label, prediction, volumes.grid.spacing)
