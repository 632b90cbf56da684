"""Samples of UPMC Food-101: their splits, their classes, and the data that a training gets."""

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cggm.errors import DataError
from cggm_cls.data.food101.store import FeatureKey, open_features
from cggm_cls.data.food101.variants import FoodRecord, read_variant
from cggm_cls.data.sequences import TaskData
from cggm_cls.data.simulated import is_simulated

VALIDATION = 5000
"""Samples of the validation split."""

_LEAST_RATIO = 10  # the validation split is at most the tenth part of the training samples


@dataclass(frozen=True)
class Food101:
    """All samples of a folder.

    Attributes:
        root: The folder.
        classes: Names of the classes, sorted; a class index counts in this order.
        splits: ``train``, ``valid`` and ``test``, in the order of the files.
        digest: Sha256 of identifiers, labels, texts and image sizes, whatever was drawn for
            validation. An image replaced by one of the same size goes unnoticed.
        sizes: Identifier to bytes of the image, ``None`` without an image file.
        simulated: Whether the folder declares itself simulated.
        notes: What the user ought to know about the data, a sentence each.
    """

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[FoodRecord]]
    digest: str
    sizes: Mapping[str, int | None]
    simulated: bool
    notes: tuple[str, ...]

    def image_file(self, record: FoodRecord) -> Path:
        """Where the image of a sample lies.

        Args:
            record: The sample; its file may be missing.
        """
        return self.root / record.image

    @property
    def missing(self) -> tuple[str, ...]:
        """Identifiers of the samples without an image file."""
        return tuple(record_id for record_id, size in self.sizes.items() if size is None)

    def fingerprint(self, record: FoodRecord) -> bytes:
        """Bytes that the digest takes of one sample.

        Args:
            record: The sample.
        """
        return _fingerprint(record, self.sizes)


def read_food101(root: Path, *, validation: int = VALIDATION, seed: int = 0) -> Food101:
    """List the samples of a folder and draw the validation split, without reading an image.

    There is no official validation split: it is drawn from the training samples, equally from
    every class, unless the folder lists a ``dev`` split.

    Args:
        root: Folder in one of the variants of :func:`~cggm_cls.data.food101.variants.read_variant`.
        validation: Samples of the validation split, but at most a tenth of the training samples,
            and at least one of each class.
        seed: Of the draw.

    Raises:
        DataError: If a list is faulty, an image lies outside the root, a class has no training
            sample, or a sample or image occurs in two places.
    """
    variant, listed = read_variant(root)
    files = _resolved(root, listed)
    _check_unique(root, listed, files)
    classes = _classes(root, listed)
    sizes = {record_id: _file_size(file) for record_id, file in files.items()}
    if "dev" in listed:
        splits = {"train": listed["train"], "valid": listed["dev"]}
    else:
        splits = _draw(root, listed["train"], validation, seed)
    return Food101(
        root=root,
        classes=classes,
        splits={**splits, "test": listed["test"]},
        digest=_digest(listed, sizes),
        sizes=sizes,
        simulated=is_simulated(root),
        notes=_notes(variant, listed, sizes),
    )


def load_food101(root: Path | None, store: Path, *, seed: int) -> TaskData:
    """The splits of a feature store; neither images nor backbones are needed.

    Args:
        root: The folder that the features were extracted from, to check that they still belong to
            it; its images are not read. Not checked where ``None``.
        store: Folder that :func:`cggm_cls.data.food101.extraction.extract_features` wrote.
        seed: Of the choice of views.

    Raises:
        DataError: If the store is damaged, or the folder faulty.
        UserError: If the store is unfinished, or was made from other samples.
    """
    expected: FeatureKey = {} if root is None else {"records": read_food101(root).digest}
    features = open_features(store, expected)
    return features.task_data(seed=seed)


def _resolved(root: Path, listed: Mapping[str, Sequence[FoodRecord]]) -> dict[str, str]:
    """Real path of each image, by identifier."""
    real_root = os.path.realpath(root)  # links are followed: one may lead out of the folder
    files = {}
    for record in _all(listed):
        files[record.id] = os.path.realpath(os.path.join(root, record.image))
        if not files[record.id].startswith(real_root + os.sep):
            what = f"Expected an image inside {root}, but this path leaves it."
            raise DataError(record.id, Path(record.image), what, "Correct the path in the list.")
    return files


def _check_unique(
    root: Path, listed: Mapping[str, Sequence[FoodRecord]], files: Mapping[str, str]
) -> None:
    twice = [name for name, n in Counter(record.id for record in _all(listed)).items() if n > 1]
    if twice:
        what = f"Expected every sample once, but this and {len(twice) - 1} others occur repeatedly."
        raise DataError(twice[0], None, what, "Remove the repetitions from the lists.")
    split_of: dict[str, str] = {}
    for split, records in listed.items():
        for record in records:
            other = split_of.setdefault(files[record.id], split)
            if other != split:
                what = f"Expected an image in one split, but it is in {other} and in {split}."
                fix = "Remove it from one of the lists."
                raise DataError(record.id, root / record.image, what, fix)


def _classes(root: Path, listed: Mapping[str, Sequence[FoodRecord]]) -> tuple[str, ...]:
    classes = {record.label for record in listed["train"]}
    for record in _all(listed):
        if record.label not in classes:
            what = f"Expected one of the {len(classes)} classes of the training samples, "
            what += f"but found {record.label!r}."
            raise DataError(record.id, root / record.image, what, "Correct its label.")
    return tuple(sorted(classes))


def _draw(
    root: Path, records: Sequence[FoodRecord], validation: int, seed: int
) -> dict[str, list[FoodRecord]]:
    from sklearn.model_selection import train_test_split

    labels = [record.label for record in records]
    # A stratified draw needs a sample of each class.
    size = max(min(validation, len(records) // _LEAST_RATIO), len(set(labels)))
    try:
        parts = train_test_split(
            range(len(records)), test_size=size, random_state=seed, stratify=labels
        )
    except ValueError as error:
        what = f"Expected enough training samples to draw {size} of them for validation ({error})."
        raise DataError(
            str(root), None, what, "Give at least two samples of each class."
        ) from error
    drawn = zip(("train", "valid"), parts, strict=True)
    return {split: [records[position] for position in sorted(part)] for split, part in drawn}


def _all(listed: Mapping[str, Sequence[FoodRecord]]) -> Iterable[FoodRecord]:
    return (record for records in listed.values() for record in records)


def _file_size(file: str) -> int | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _digest(listed: Mapping[str, Sequence[FoodRecord]], sizes: Mapping[str, int | None]) -> str:
    digest = hashlib.sha256()
    for split, records in listed.items():
        digest.update(split.encode())
        for record in records:
            digest.update(_fingerprint(record, sizes))
    return digest.hexdigest()


def _fingerprint(record: FoodRecord, sizes: Mapping[str, int | None]) -> bytes:
    line = [record.id, record.label, record.text, sizes[record.id]]
    return json.dumps(line).encode()


def _notes(
    variant: str, listed: Mapping[str, Sequence[FoodRecord]], sizes: Mapping[str, int | None]
) -> tuple[str, ...]:
    train = listed["train"]
    # Titles often give the class away, which makes text dominant; readers should know how often.
    telling = sum(record.label.replace("_", " ") in record.text.lower() for record in train)
    notes = [
        f"UPMC Food-101 as listed in its {variant} variant.",
        f"The text names its class in {telling / len(train):.0%} of the training samples.",
    ]
    missing = [record_id for record_id, size in sizes.items() if size is None]
    if missing:
        notes.append(f"{len(missing)} samples have no image file, the first of them {missing[0]}.")
    return tuple(notes)
