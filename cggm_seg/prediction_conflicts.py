"""Which earlier predictions must not be replaced, nor be mixed with new ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cggm.errors import DataError, UserError
from cggm_seg.cases import Case
from cggm_seg.prediction_folder import PredictionFolder, Record


def check_alike(
    folder: PredictionFolder, cases: Sequence[Case], made_with: Mapping[str, str]
) -> None:
    """Refuse to predict some cases otherwise than others.

    Args:
        folder: With earlier predictions.
        cases: What is to be predicted.
        made_with: See :func:`cggm_seg.identity.made_with`.

    Raises:
        UserError: If the label map of a case is there, by another network or other settings.
    """
    records = [record for case in cases if (record := folder.read(case.id))]
    others = [
        record
        for record in records
        if record.made_with != made_with and folder.is_ours(record, folder.labels(record.case))
    ]
    if others:
        theirs = others[0].made_with
        keys = dict.fromkeys([*made_with, *theirs])
        names = ", ".join(key for key in keys if made_with.get(key) != theirs.get(key))
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise UserError(
            f"{folder.path}: expected predictions by this network and with these settings, but "
            f"that of {others[0].case}{more} was made with another {names}.",
            "Choose another --output, or replace them with --overwrite.",
        )


def check_replaceable(
    folder: PredictionFolder, case_id: str, files: Sequence[Path], record: Record | None
) -> None:
    """Refuse to replace what is not the same prediction, left unfinished.

    Args:
        folder: With earlier predictions.
        case_id: The case.
        files: What is to be written.
        record: Of an earlier prediction by the same network, settings and images, if any.

    Raises:
        DataError: If one of the files is there and the record does not know it.
    """
    for file in files:
        if file.exists() and not folder.is_ours(record, file):
            ours = folder.is_ours(folder.read(case_id), file)
            made = "it is there, made from other images" if ours else "the file exists"
            what = f"Expected no prediction yet, but {made}."
            fix = "Remove it, allow overwriting or choose another folder."
            raise DataError(case_id, file, what, fix)
