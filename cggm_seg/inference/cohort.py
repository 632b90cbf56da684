"""Predictions of whole cohorts; one that was interrupted goes on where it stopped."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from tqdm import tqdm

from cggm.distributed import gather_shards, is_first_rank, shard
from cggm.errors import DataError
from cggm.runs import holding
from cggm_seg.data import Case
from cggm_seg.inference.case import CasePredictor
from cggm_seg.inference.folder import PredictionFolder, check_one_origin, made_with
from cggm_seg.inference.options import FileOptions
from cggm_seg.inference.outputs import write_summary
from cggm_seg.inference.slices import InferenceSettings, device_of
from cggm_seg.inference.volume import DEFAULT, check_absent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What came of a cohort.

    Attributes:
        written: Label maps that were written.
        found: Label maps that an earlier call had made in the same way.
        errors: One for each case without a label map of this call.
    """

    written: list[Path]
    found: list[Path]
    errors: list[DataError]

    @property
    def files(self) -> list[Path]:
        """All label maps, sorted."""
        return sorted([*self.written, *self.found])


def predict_cases(
    network: nn.Module,
    cases: Sequence[Case],
    output: Path,
    settings: InferenceSettings = DEFAULT,
    *,
    absent: Collection[str] = (),
    files: FileOptions = FileOptions(),  # noqa: B008  # frozen
    learned_from: Mapping[str, Sequence[str]] | None = None,
    strict: bool = False,
) -> Predictions:
    """Segments cases and writes ``<output>/<case id>.nii.gz``, with the labels of their scheme.

    A modality that a case lacks is replaced by zeros, with a warning in the log. ``summary.csv``
    tells the volumes of all cases in the folder. Cases that the same network predicted with the
    same settings from the same images are not predicted again: ``records/<case id>.json`` says what
    made each file. One process, or one group of ranks, at a time for each folder: ranks share the
    cases, so that every rank calls this, and each gets the outcome of all.

    Args:
        network: See ``predict_volume``.
        cases: The cases; label maps are not read.
        output: Folder, made if there is none.
        settings: How volumes are cut, batched and computed.
        absent: Modalities to be replaced by zeros in every case; their images are not read.
        files: What is written besides label maps, and whether files that were made otherwise are
            replaced; such a file is an error otherwise.
        learned_from: Case to the names of the trainings that it was in, for those that were in any;
            the log and ``summary.csv`` say so, because their labels tell nothing of new patients.
        strict: Whether the first bad case ends the run.

    Raises:
        DataError: If a case cannot be predicted and ``strict`` is set.
        UserError: If the output cannot be written, another process writes there, it holds
            predictions of another network or other settings, ``absent`` names an unknown modality,
            or memory is too short.
    """
    check_absent(network, absent)
    folder = PredictionFolder(output)
    predictor = CasePredictor(
        network,
        settings,
        folder,
        made_with(network, settings),
        settings.batches(device_of(network)),
        absent,
        files,
        learned_from or {},
    )
    if not files.overwrite:
        check_one_origin(folder, cases, predictor.made_with)
    outcomes = _predict_all(predictor, cases, strict)
    done = [(folder.labels(c.id), outcome) for c, outcome in zip(cases, outcomes, strict=True)]
    return Predictions(
        [file for file, outcome in done if outcome is True],
        [file for file, outcome in done if outcome is False],
        [outcome for outcome in outcomes if isinstance(outcome, DataError)],
    )


def _predict_all(
    predictor: CasePredictor, cases: Sequence[Case], strict: bool
) -> list[bool | DataError]:
    """Whether each case was predicted, and not found, or why there is nothing."""
    predictor.folder.make()
    if is_first_rank():
        _warn(predictor, cases)
    hidden = None if is_first_rank() else True  # None shows a bar on terminals alone
    bar = tqdm(shard(cases), "Predicting", unit="case", disable=hidden)
    alone = is_first_rank()  # who holds the folder, for all ranks
    with holding(predictor.folder.path, "an inference") if alone else nullcontext():
        outcomes = gather_shards([_attempt(predictor, case, strict) for case in bar])
        if alone:
            write_summary(predictor.folder)
    return outcomes


def _warn(predictor: CasePredictor, cases: Sequence[Case]) -> None:
    """What holds for many cases, said once."""
    if predictor.absent:
        logger.warning("%s: replaced by zeros in every case.", ", ".join(predictor.absent))
    counts = Counter(run for case in cases for run in predictor.learned_from.get(case.id, ()))
    for run, count in sorted(counts.items()):
        logger.warning(
            "%s: %d of these %d cases were in its training; their labels tell nothing of new "
            "patients.",
            *(run, count, len(cases)),
        )


def _attempt(predictor: CasePredictor, case: Case, strict: bool) -> bool | DataError:
    try:
        return predictor.predict(case)
    except DataError as error:
        if strict:
            raise
        return error
