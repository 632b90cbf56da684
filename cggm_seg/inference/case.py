"""Prediction of one case, from its images to its files, unless these are there already."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from torch import nn

from cggm.errors import DataError
from cggm.runs import file_digest
from cggm_seg.data import Case, Volumes, read_case, write_labels
from cggm_seg.inference.folder import (
    PredictionFolder,
    PredictionRecord,
    Writer,
    check_replaceable,
)
from cggm_seg.inference.options import FileOptions
from cggm_seg.inference.outputs import region_volumes, write_probabilities
from cggm_seg.inference.slices import BatchSize, InferenceSettings, NotFinitePrediction
from cggm_seg.inference.volume import names_of, segment
from cggm_seg.pictures import save_preview

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CasePredictor:
    """Predicts cases into a folder.

    Attributes:
        network: See :func:`cggm_seg.inference.volume.predict_volume`.
        settings: How volumes are cut and computed.
        folder: Where to.
        made_with: See :func:`cggm_seg.inference.folder.made_with`.
        size: Slices at once; what one case learns of it the next one knows.
        absent: Modalities to be replaced by zeros in every case.
        options: What is written besides label maps, and whether files are replaced that were not
            made by this network, with these settings, from these images.
        learned_from: Case to the trainings that it was in.
    """

    network: nn.Module
    settings: InferenceSettings
    folder: PredictionFolder
    made_with: Mapping[str, str]
    size: BatchSize
    absent: Collection[str] = ()
    options: FileOptions = FileOptions()  # noqa: RUF009  # frozen
    learned_from: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def predict(self, case: Case) -> bool:
        """Write the files of a case, or find them there.

        Returns:
            Whether they were written.

        Raises:
            DataError: If the case cannot be read, or files are there that must not be replaced.
            UserError: If they cannot be written.
        """
        case = self._seen(case)
        inputs = _digests(case)
        old = self.folder.read(case.id)
        same = old is not None and (old.made_with, old.naming, old.inputs) == (
            self.made_with,
            case.labels.name,
            inputs,
        )
        files = self._files(case.id, old)
        if same and all(self.folder.is_ours(old, file) for file in files):
            return False
        if not self.options.overwrite:
            check_replaceable(self.folder, case.id, files, old if same else None)
        self._write(case, inputs, files)
        return True

    def _seen(self, case: Case) -> Case:
        """The images that the network is to see, in the order of its channels."""
        names = names_of(self.network)
        missing = [n for n in names if n not in case.images and n not in self.absent]
        if missing:
            logger.warning("%s: no %s, replaced by zeros.", case.id, ", ".join(missing))
        images = {n: case.images[n] for n in names if n not in {*missing, *self.absent}}
        if not images:
            what = f"Expected at least one of {', '.join(names)}, but all are missing or absent."
            raise DataError(case.id, None, what, "Add an image, or leave the case out.")
        return replace(case, images=images, label=None)

    def _files(self, case_id: str, old: PredictionRecord | None) -> list[Path]:
        """What is to be written, and what an earlier prediction wrote, lest it be outdated."""
        folder, known = self.folder, old.outputs if old else {}
        optional = {
            folder.probabilities(case_id): self.options.probabilities,
            folder.preview(case_id): self.options.previews,
        }
        wanted = [f for f, w in optional.items() if w or folder.name_of(f) in known]
        return [folder.labels(case_id), *wanted]

    def _write(self, case: Case, inputs: Mapping[str, str], files: Collection[Path]) -> None:
        start = perf_counter()
        volumes, names = read_case(case), names_of(self.network)
        try:
            labels, probabilities = segment(
                self.network,
                volumes.channels(names),
                self.settings,
                self.size,
                probabilities=self.folder.probabilities(case.id) in files,
            )
        except NotFinitePrediction as error:
            raise DataError(case.id, None, error.what, error.fix) from error
        record = PredictionRecord(
            case=case.id,
            made_with=self.made_with,
            naming=case.labels.name,
            inputs=inputs,
            absent=[name for name in names if name not in case.images],
            volumes_ml=region_volumes(labels, volumes.grid.affine),
            seconds=perf_counter() - start,
            outputs={},
            learned_from=[*self.learned_from.get(case.id, ())],
        )
        writers = self._writers(case, volumes, labels, probabilities, record)
        self.folder.write(record, {file: writers[file] for file in files})

    def _writers(
        self,
        case: Case,
        volumes: Volumes,
        labels: np.ndarray,
        probabilities: np.ndarray | None,
        record: PredictionRecord,
    ) -> dict[Path, Writer]:
        preview = partial(
            save_preview,
            images=volumes.images,
            labels=labels,
            case_id=case.id,
            modalities=[*case.images],
            volumes=record.volumes_ml,
            absent=record.absent,
            spacing=volumes.grid.spacing,
        )
        writers: dict[Path, Writer] = {
            self.folder.labels(case.id): partial(
                write_labels, classes=labels, grid=volumes.grid, scheme=case.labels
            ),
            self.folder.preview(case.id): preview,
        }
        if probabilities is not None:
            writers[self.folder.probabilities(case.id)] = partial(
                write_probabilities, probabilities=probabilities, grid=volumes.grid
            )
        return writers


def _digests(case: Case) -> dict[str, str]:
    try:
        return {name: file_digest(file) for name, file in case.images.items()}
    except OSError:
        read_case(case)  # its error names the file and the remedy
        raise
