"""Reader of CMU-MOSI and CMU-MOSEI, from the files that MulT, MMSA and MultiBench distribute.

A pickle is told by its keys and shapes (:mod:`~cggm_cls.data.mosi.layouts`), its arrays are checked
as they are taken out (:mod:`~cggm_cls.data.mosi.split`), and what is read is kept in a store that
later runs open in its place.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cggm.errors import UserError
from cggm_cls.data.converted import is_store, open_converted
from cggm_cls.data.mosi.layouts import MODALITIES, recognize, refuse_hdf5
from cggm_cls.data.mosi.split import Mask, MosiSplit, informative_steps, keep_steps
from cggm_cls.data.pickles import load_arrays
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData, content_digest
from cggm_cls.metrics import sentiment_metrics

_PICKLES = (".pkl", ".pickle")


def load_mosi(data: Path, store: Path | None) -> TaskData:
    """Open CMU-MOSI or CMU-MOSEI; the pickle is read once, later the converted copy alone.

    Args:
        data: The pickle, a folder with one pickle, or a folder that holds a converted copy.
        store: Where the converted copy is kept; ``<file>.converted`` beside it where ``None``.

    Raises:
        DataError: If the file is none of the known layouts or damaged, see :func:`read_mosi`.
        UserError: If the folder does not hold exactly one pickle, or the copy cannot be kept.
    """
    if data.is_dir() and not is_store(data):
        data = _pickle_in(data)
    # A function is in no store.
    return replace(open_converted(data, store, read_mosi), own_measure=sentiment_metrics)


def read_mosi(file: Path) -> TaskData:
    """Read the layout of MulT or MMSA, aligned or not, or that of MultiBench.

    Text steps are real where BERT's attention mask says so, or else where any feature differs
    from zero. Steps of audio and vision are real up to their lengths where the file has them, and
    otherwise where any feature differs from zero; in an aligned file also where any other modality
    is there, so that both keep the same steps. Padding may come first or last. Infinite values and
    NaN become zero; samples without any real step stay. The notes count both.

    Peak memory is the content of the pickle plus the real steps as float32.

    Args:
        file: The pickle; it cannot run code, see :func:`cggm_cls.data.pickles.load.load_arrays`.

    Raises:
        DataError: If the file is of another family or data set, lacks a split or a key, or has
            arrays of the wrong type, shape, number of samples or range.
    """
    refuse_hdf5(file)
    found = recognize(load_arrays(file), file)
    notes = [f"{file.name} has the {found.family} layout."]
    parts = {split.name: _read_split(split, found.aligned, notes) for split in found.splits}
    return TaskData(
        train=parts["train"],
        valid=parts["valid"],
        test=parts["test"],
        classes=None,
        digest=content_digest(parts),
        simulated=found.simulated,
        notes=tuple(notes),
    )


def _read_split(split: MosiSplit, aligned: bool, notes: list[str]) -> SequenceDataset:
    labels, ids = split.labels(), split.ids()
    masks = _masks(split, aligned)
    inputs: dict[str, RaggedSequences] = {}
    for modality in MODALITIES:
        inputs[modality], replaced = keep_steps(split.sequences(modality), masks[modality])
        split.drop([modality])  # the arrays of a MOSEI file are gigabytes
        notes += _counts(f"{split.name} {modality}", replaced, inputs[modality])
    return SequenceDataset(inputs, labels, ids)


def _masks(split: MosiSplit, aligned: bool) -> dict[str, Mask]:
    masks: dict[str, Mask] = {}
    for modality in MODALITIES:  # the file's own word on padding goes before a guess from zeros
        values = split.sequences(modality)
        if modality == "text":
            known = split.attention(values.shape[1])
        else:
            known = split.first_steps(f"{modality}_lengths", values.shape[1])
        masks[modality] = informative_steps(values) if known is None else known
    if aligned:  # a silent or faceless step keeps its place; text steps alone may be BERT's padding
        common = masks["text"] | masks["audio"] | masks["vision"]
        masks |= {"audio": common, "vision": common}
    return masks


def _counts(where: str, replaced: int, sequences: RaggedSequences) -> Iterator[str]:
    if replaced:
        yield f"{where}: {replaced} values were infinite or NaN and are 0 now."
    empty = int((sequences.lengths == 0).sum())
    if empty:
        yield f"{where}: {empty} samples have no real step."


def _pickle_in(folder: Path) -> Path:
    found = sorted(file for file in folder.iterdir() if file.suffix in _PICKLES)
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise UserError(
        f"{folder}: expected one file of CMU-MOSI or CMU-MOSEI ({' or '.join(_PICKLES)}), "
        f"but found {names}.",
        "Give the path of the file itself.",
    )
