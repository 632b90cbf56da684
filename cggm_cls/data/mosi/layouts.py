"""Layouts in which CMU-MOSI and CMU-MOSEI are distributed, told apart by keys and shapes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cggm.errors import DataError
from cggm_cls.data.mosi.split import MosiSplit

MODALITIES = ("text", "audio", "vision")
"""In the order of the paper."""

SPLITS = ("train", "valid", "test")

_KNOWN = (
    "Give a CMU-MOSI or CMU-MOSEI file of MulT (mosi_data.pkl, mosi_data_noalign.pkl), MMSA "
    "(aligned_50.pkl, unaligned_50.pkl) or MultiBench (mosi_raw.pkl)."
)


@dataclass(frozen=True)
class MosiFile:
    """Layout of a file and its splits, as :func:`recognize` finds them.

    Attributes:
        family: ``mult-aligned``, ``mult-unaligned``, ``mmsa-aligned``, ``mmsa-unaligned`` or
            ``multibench``.
        aligned: Whether the steps of all modalities belong to the same words.
        splits: Training, validation and test split.
        simulated: Whether the file says that nothing in it was measured.
    """

    family: str
    aligned: bool
    splits: tuple[MosiSplit, ...]
    simulated: bool


def refuse_hdf5(file: Path) -> None:
    """Say that a MultiBench words file is one, before it is taken for a damaged pickle.

    Args:
        file: What was given as a pickle.

    Raises:
        DataError: If the file is HDF5.
    """
    with file.open("rb") as stream:
        if stream.read(8) == b"\x89HDF\r\n\x1a\n":
            raise _foreign(file, "an HDF5 file, as MultiBench uses for words (mosi.hdf5)")


def recognize(content: object, file: Path) -> MosiFile:
    """Tell which family a file belongs to.

    Args:
        content: What the pickle holds.
        file: Where that was read from, for the messages.

    Raises:
        DataError: If that is another data set or layout, lacks a split or a key, or if splits
            differ in their features.
    """
    if not isinstance(content, dict) or not _has_splits(content):
        raise _without_splits(content, file)
    # MMSA's "labels", where there are any, are not the sentiment scores.
    mmsa = any("regression_labels" in content[name] for name in SPLITS)
    key = "regression_labels" if mmsa else "labels"
    splits = {name: _split(name, content[name], file, key) for name in SPLITS}
    for modality in MODALITIES:
        _check_widths(modality, tuple(splits.values()))
    aligned = all(
        len({split.sequences(name).shape[1] for name in MODALITIES}) == 1
        for split in splits.values()
    )
    return MosiFile(
        _family(splits["train"], aligned),
        aligned,
        tuple(splits.values()),
        content.get("simulated") is True,
    )


def _family(train: MosiSplit, aligned: bool) -> str:
    side = "aligned" if aligned else "unaligned"
    if train.labels_key == "regression_labels":
        return f"mmsa-{side}"
    # MulT has rows of video, start and end of a sentence; MultiBench has one text per sentence.
    rows = "id" not in train.content or train.array("id").shape[1:] == (3,)
    return f"mult-{side}" if rows else "multibench"


def _has_splits(content: dict[Any, Any]) -> bool:
    return all(isinstance(content.get(name), dict) for name in SPLITS)


def _split(name: str, arrays: dict[str, Any], file: Path, labels_key: str) -> MosiSplit:
    if "regression_labels_T" in arrays:
        raise _foreign(file, "a CH-SIMS file of MMSA")
    if getattr(arrays.get("labels"), "shape", ())[1:] == (4, 2):
        raise _foreign(file, "IEMOCAP in the MulT layout (four binary labels per sample)")
    if not {*MODALITIES} & {*arrays}:
        raise _foreign(file, f"a file whose {name} split has the keys {_names(arrays)}")
    split = MosiSplit(name, arrays, file, labels_key)
    split.array(labels_key)
    return split


def _check_widths(modality: str, splits: tuple[MosiSplit, ...]) -> None:
    expected = splits[0].sequences(modality).shape[2]
    for split in splits:
        found = split.sequences(modality).shape[2]
        if found != expected:
            what = f"Expected {expected} features per step, as in train, but found {found}."
            raise split.error(modality, what)


def _without_splits(content: object, file: Path) -> DataError:
    parts = content.values() if isinstance(content, dict) else [content]
    if any(isinstance(part, list | tuple) for part in parts):
        return _foreign(file, "samples as tuples, as in the files of MISA and MAG-BERT")
    if not isinstance(content, dict):
        return _foreign(file, f"an object of type {type(content).__name__}")
    odd = [name for name in SPLITS if name in content and not isinstance(content[name], dict)]
    if odd:
        return _foreign(file, f"{odd[0]} of type {type(content[odd[0]]).__name__}")
    return _foreign(file, f"the keys {_names(content)}")


def _foreign(file: Path, found: str) -> DataError:
    expected = "the splits train, valid and test, each with text, audio, vision and labels"
    return DataError("CMU-MOSI", file, f"Expected {expected}, but found {found}.", _KNOWN)


def _names(content: dict[Any, Any]) -> str:
    shown = [str(key) for key in content][:12]
    return ", ".join(shown + (["..."] if len(content) > 12 else [])) or "none"
