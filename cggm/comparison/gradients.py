"""Gradients of heads beside those of single modalities, as trainings kept them: figure 4."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cggm.comparison.records import FinishedRun
from cggm.display import PALETTE, Cloud, ScatterChart
from cggm.errors import UserError
from cggm.runs import RunFolder

Vectors = NDArray[np.float32]
Gradients = Mapping[str, Vectors]
"""Unit vectors by ``"head <modality>"`` or ``"unimodal <modality>"``, shape ``(K, P)`` each."""


def read_gradients(records: Sequence[FinishedRun], output: Path) -> dict[str, dict[str, Vectors]]:
    """Gradients by method.

    Args:
        records: Of one task; of each method the first seed that kept vectors is taken.
        output: Folder of the comparison.
    """
    found = {}
    for record in sorted(records, key=lambda r: r.seed, reverse=True):
        file = RunFolder(output / record.path).gradients
        if file.exists():
            found[record.method] = _unit_vectors(file)
    return found


def gradient_chart(title: str, gradients: Gradients, *, seed: int = 0) -> ScatterChart:
    """Gradients of one method in the plane by t-SNE.

    Each chart is an embedding of its own. t-SNE keeps neighbors, so that clusters may be told
    apart or not, but neither distances between clusters nor their sizes mean anything.

    Args:
        title: What it shows.
        gradients: At least four vectors.
        seed: Of the embedding.
    """
    points = _embedded(np.concatenate([*gradients.values()]), seed)
    ends = np.cumsum([len(rows) for rows in gradients.values()])
    pairs = [key.partition(" ")[::2] for key in gradients]
    order = list(dict.fromkeys(modality for _, modality in pairs))
    clouds = [
        Cloud(
            f"{modality}, {'head' if kind == 'head' else 'network with it alone'}",
            own[:, 0].astype(float),
            own[:, 1].astype(float),
            color=order.index(modality) % len(PALETTE),
            crossed=kind == "unimodal",
        )
        for (kind, modality), own in zip(pairs, np.split(points, ends[:-1]), strict=True)
    ]
    return ScatterChart(title, clouds)


def describe_agreement(gradients: Mapping[str, Gradients], task: str) -> str:
    """How far a head's gradients agree with those of its modality, and with those of the others.

    Args:
        gradients: By method.
        task: What was trained.
    """
    head = (
        f"Mean cosine on {task} of a head's last-layer gradient with the network's when it sees "
        "that modality alone, batch by batch:"
    )
    lines = [line for method, own in gradients.items() for line in _agreement(method, own)]
    return "\n".join([head, "", *lines])


def _agreement(method: str, gradients: Gradients) -> list[str]:
    names = [key.removeprefix("head ") for key in gradients if key.startswith("head ")]
    lines = []
    for name in names:
        head = gradients[f"head {name}"]
        cosines = {n: float((head * gradients[f"unimodal {n}"]).sum(1).mean()) for n in names}
        own = cosines.pop(name)
        rest = f", with the others' {np.mean([*cosines.values()]):+.2f}" if cosines else ""
        lines.append(f"- {method}, {name}: {own:+.2f}{rest}")
    return lines


def _embedded(vectors: Vectors, seed: int) -> Vectors:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    points: Vectors = tsne.fit_transform(vectors)
    return points


def _unit_vectors(file: Path) -> dict[str, Vectors]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: _unit(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise UserError(
            f"{file}: expected gradients as NumPy arrays, but {error}.",
            "Delete the file; the comparison goes without.",
        ) from error


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
