"""Subsets of modalities: what a trained nnU-Net scores where the others are absent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from tqdm import tqdm

from cggm.display import aligned
from cggm.errors import UserError
from cggm.reports import SIMULATED, Column, Section, plain_table, write_page
from cggm.runs import new_folder, write_json
from cggm.tensors import subsets_of
from cggm_nnunet.settings import channel_names


@dataclass(frozen=True)
class SubsetScores:
    """Mean Dice of every subset of modalities.

    Attributes:
        rows: Modalities joined by ``+`` to label or region to mean Dice over the cases in which the
            reference or the prediction has any of it; NaN where none has.
        cases: Number of cases.
        simulated: Whether the data are.
    """

    rows: dict[str, dict[str, float]]
    cases: int
    simulated: bool

    def table(self) -> str:
        """One line per subset."""
        names = [*next(iter(self.rows.values()))]
        rows = [[s, *(f"{row[n]:.3f}" for n in names)] for s, row in self.rows.items()]
        return "\n".join(aligned([["modalities", *names], *rows]))

    def write(self, folder: Path) -> Path:
        """Write ``subsets.json`` and a page with the scores as a heat map.

        Args:
            folder: Where to.

        Returns:
            The page.
        """
        write_json(folder / "subsets.json", {"cases": self.cases, "dice": self.rows})
        names = [*next(iter(self.rows.values()))]
        columns = [Column("modalities", [subset.replace("+", " + ") for subset in self.rows])]
        columns += [
            Column(f"Dice {name}", [row[name] for row in self.rows.values()], 3, True, (0.0, 1.0))
            for name in names
        ]
        caption = f"Mean Dice of {self.cases} cases for {len(self.rows)} subsets of modalities"
        return write_page(
            folder / "report.html",
            title="Missing modalities",
            lead="Channels of absent modalities are constant; the stronger the color, the better.",
            sections=[Section("Subsets", plain_table(caption, columns))],
            simulated=SIMULATED if self.simulated else "",
        )


def score_subsets(
    model: Path,
    images: Path,
    labels: Path,
    output: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    mirroring: bool = True,
    device: str = "cpu",
) -> SubsetScores:
    """Predict every case from every subset of its modalities, and score the predictions.

    Cases are preprocessed once, with all modalities, whose absence then is a constant channel.

    Args:
        model: Folder of a trained model, ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.
        images: Cases in nnU-Net's layout, ``CASE_0000.nii.gz``.
        labels: Their references, ``CASE.nii.gz``.
        output: New folder for the predictions, one folder for each subset.
        folds: Of the ensemble; all that there are if ``None``.
        checkpoint: Name of its files.
        mirroring: Whether predictions of mirrored images are averaged, as nnU-Net does.
        device: Where to predict.

    Raises:
        UserError: If model, cases or references are not there, or the output is.
    """
    _require(model / "plans.json", "a trained model", "Give nnUNet_results/DATASET/TRAINER__...")
    predictor = nnUNetPredictor(
        use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), folds, checkpoint)
    ending = predictor.dataset_json["file_ending"]
    files = create_lists_from_splitted_dataset_folder(str(images), ending)
    cases = {Path(own[0]).name[: -len(f"_0000{ending}")]: own for own in files}
    if not cases:
        raise UserError(f"Expected cases in {images}, but found none.", "Give a folder imagesTs.")
    for case in cases:
        _require(labels / (case + ending), f"the reference of {case}", "Give a folder labelsTs.")
    names = channel_names(predictor.dataset_json)
    found: dict[str, list[dict[str, float]]] = {"+".join(s): [] for s in subsets_of(names)}
    with new_folder(output) as draft:
        for subset in found:
            (draft / subset).mkdir()
        for case, own in tqdm(cases.items(), desc="cases", disable=None):
            _predict(predictor, own, draft, case, names)
            for subset, rows in found.items():
                file = draft / subset / (case + ending)
                rows.append(_dice(predictor, labels / (case + ending), file))
        simulated = "SIMULATED" in str(predictor.dataset_json.get("description", ""))
        scores = SubsetScores(
            {subset: _means(rows) for subset, rows in found.items()}, len(cases), simulated
        )
        scores.write(draft)
    return scores


def _predict(
    predictor: nnUNetPredictor, files: list[str], folder: Path, case: str, names: Sequence[str]
) -> None:
    """Write what is predicted of a case from every subset of its modalities."""
    plan = (predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json)
    preprocessor = plan[1].preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(files, None, *plan)
    for subset in subsets_of(names):
        blanked = data.copy()
        blanked[[index for index, name in enumerate(names) if name not in subset]] = 0.0
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(blanked)).cpu()
        target = str(folder / "+".join(subset) / case)
        export_prediction_from_logits(logits, properties, plan[1], plan[0], plan[2], target)


def _dice(predictor: nnUNetPredictor, reference: Path, prediction: Path) -> dict[str, float]:
    """Dice by label or region, NaN where neither file has any of it."""
    manager: Any = predictor.label_manager
    wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    reader = predictor.plans_manager.image_reader_writer_class()
    found = compute_metrics(str(reference), str(prediction), reader, wanted, manager.ignore_label)
    labels = predictor.dataset_json["labels"]
    named = {_key(value): name for name, value in labels.items()}
    return {named[_key(key)]: float(row["Dice"]) for key, row in found["metrics"].items()}


def _key(label: Any) -> tuple[int, ...]:  # noqa: ANN401
    """A label, or the labels of a region, however they are written."""
    return tuple(sorted(map(int, label))) if isinstance(label, list | tuple) else (int(label),)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    columns = {name: [row[name] for row in rows if not np.isnan(row[name])] for name in rows[0]}
    return {name: float(np.mean(kept)) if kept else np.nan for name, kept in columns.items()}


def _require(file: Path, what: str, fix: str) -> None:
    if not file.is_file():
        raise UserError(f"Expected {what}, but there is no {file}.", fix)
