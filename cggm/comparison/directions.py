"""Directions that heads and modalities ask for, as trainings kept them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cggm.comparison.records import Record
from cggm.runs import RunFolder

Vectors = NDArray[np.float32]


def read_directions(records: Sequence[Record], output: Path) -> dict[str, dict[str, Vectors]]:
    """Unit vectors by method and by ``"head <modality>"`` or ``"unimodal <modality>"``.

    Args:
        records: Of one task; of each method the first seed that kept vectors is taken.
        output: Folder of the comparison.
    """
    found = {}
    for record in sorted(records, key=lambda r: r.seed, reverse=True):
        file = RunFolder(output / record.path).gradients
        if file.exists():
            with np.load(file, allow_pickle=False) as archive:
                found[record.method] = {name: _unit(archive[name]) for name in archive.files}
    return found


def labels_of(vectors: Mapping[str, Vectors]) -> list[tuple[str, str]]:
    """Modality and kind of every row, for :func:`cggm.comparison.figures.plot_gradients`."""
    pairs = {key: (key.partition(" ")[2], key.partition(" ")[0]) for key in vectors}
    return [pairs[key] for key, rows in vectors.items() for _ in rows]


def describe_agreement(vectors: Mapping[str, Mapping[str, Vectors]], task: str) -> str:
    """How far a head's gradients agree with those of its modality, and with those of the others."""
    head = (
        f"Mean cosine on {task} of a head's last-layer gradient with the network's when it sees "
        "that modality alone, batch by batch:"
    )
    lines = [line for method, own in vectors.items() for line in _agreement(method, own)]
    return "\n".join([head, "", *lines])


def _agreement(method: str, vectors: Mapping[str, Vectors]) -> list[str]:
    names = [key.removeprefix("head ") for key in vectors if key.startswith("head ")]
    lines = []
    for name in names:
        head = vectors[f"head {name}"]
        cosines = {n: float((head * vectors[f"unimodal {n}"]).sum(1).mean()) for n in names}
        own = cosines.pop(name)
        rest = f", with the others' {np.mean([*cosines.values()]):+.2f}" if cosines else ""
        lines.append(f"- {method}, {name}: {own:+.2f}{rest}")
    return lines


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
