"""A fingerprint of loaded data."""

import hashlib
from collections.abc import Mapping

from torch import Tensor

from cggm_cls.sequences import SequenceDataset


def content_digest(splits: Mapping[str, SequenceDataset]) -> str:
    """Sha256 over everything that a model could see, in order.

    Loaded arrays rather than files are hashed: whatever changes between file and array, such as a
    normalization, is covered, and what is not used is not read.

    Args:
        splits: Name to samples.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for split, dataset in splits.items():
        digest.update(f"{split} {dataset.seed} {dict(dataset.views)} {list(dataset.ids)}".encode())
        _add(digest, "target", dataset.target)
        for name, sequences in dataset.inputs.items():
            _add(digest, f"{name} offsets", sequences.offsets)
            _add(digest, f"{name} values", sequences.values)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().numpy().data)
