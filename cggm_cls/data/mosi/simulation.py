"""Simulated data in the file formats of CMU-MOSI: nothing in them was measured.

Text carries most of the target and is learnt fast, audio carries half of it and is learnt slowly,
vision carries nothing. Labels are means of five simulated annotators, as those of CMU-MOSI.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cggm.runs import replacing
from cggm_cls.data.mosi.layouts import MODALITIES
from cggm_cls.data.simulated import SimulatedModality, simulate_sequences

INFORMATION = {"text": 0.9, "audio": 0.5, "vision": 0.0}
"""Share of the samples whose modality shows their own label."""

STRENGTH = {"text": 1.0, "audio": 0.3, "vision": 1.0}
"""Signal to noise of a step for a label of 1."""

_INFINITE = 0.01  # share of the audio steps with a value of -inf, as in the genuine files
_FEW, _MANY = (6, 20), (10, 40)  # least and greatest number of real steps


@dataclass(frozen=True)
class _Layout:
    widths: Mapping[str, int]
    steps: Mapping[str, int]  # with padding
    front: bool = False

    @property
    def aligned(self) -> bool:
        return len(set(self.steps.values())) == 1


def _by_modality(*values: int) -> dict[str, int]:
    return dict(zip(MODALITIES, values, strict=True))


_ALIGNED, _UNALIGNED = _by_modality(50, 50, 50), _by_modality(50, 375, 500)
_LAYOUTS = {
    "mult-aligned": _Layout(_by_modality(300, 5, 20), _ALIGNED),
    "mult-unaligned": _Layout(_by_modality(300, 5, 20), _UNALIGNED),
    "mmsa-aligned": _Layout(_by_modality(768, 5, 20), _ALIGNED),
    "mmsa-unaligned": _Layout(_by_modality(768, 5, 20), _UNALIGNED),
    "multibench": _Layout(_by_modality(300, 74, 35), _ALIGNED, front=True),
}
FAMILIES = tuple(_LAYOUTS)


def simulate_mosi(
    file: Path,
    *,
    family: str = "mult-aligned",
    seed: int = 0,
    train: int = 400,
    valid: int = 100,
    test: int = 200,
) -> None:
    """Write a simulated data set with the keys, types and shapes of a genuine file.

    A top-level key ``simulated``, which no genuine file has, marks it; readers pass the mark on.

    Args:
        file: The pickle to write; its folder is made if missing.
        family: One of :data:`FAMILIES`.
        seed: The same seed gives the same arrays, not negative.
        train: Number of training samples.
        valid: Number of validation samples.
        test: Number of test samples.

    Raises:
        ValueError: If there is no such family.
    """
    if family not in _LAYOUTS:
        raise ValueError(f"Expected `family` to be one of {FAMILIES}, but got {family!r}.")
    sizes = {"train": train, "valid": valid, "test": test}
    content: dict[str, Any] = {"simulated": True}
    for number, (split, size) in enumerate(sizes.items()):
        content[split] = _split(family, split, size, (seed, number))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("wb") as stream:
        pickle.dump(content, stream, protocol=4)


def _labels(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of five ratings from -3 to 3, hence multiples of 0.2."""
    opinion = rng.normal(0, 1.8, size)[:, None]
    ratings = np.clip(np.rint(opinion + rng.normal(0, 0.5, (size, 5))), -3, 3)
    return ratings.sum(axis=1) / 5


def _split(family: str, split: str, size: int, seeds: tuple[int, int]) -> dict[str, Any]:
    rng = np.random.default_rng([*seeds, 2])
    labels = _labels(size, rng)
    layout = _LAYOUTS[family]
    sequences = simulate_sequences(
        _modalities(layout), labels, seed=seeds[0], split=seeds[1], aligned=layout.aligned
    )
    arrays = {name: _pad(steps, layout, name) for name, steps in sequences.items()}
    _spoil(arrays["audio"], rng)
    lengths = {name: [len(steps) for steps in sequences[name]] for name in MODALITIES}
    if family.startswith("mmsa"):
        return arrays | _mmsa(split, labels, lengths, layout, arrays["text"], rng)
    targets = labels.astype(np.float32)
    rows = [[f"{split}{n:04d}", "0.0", f"{length}.0"] for n, length in enumerate(lengths["text"])]
    if layout.front:
        ids = np.array([f"{video}[0]" for video, *_ in rows])
        return arrays | {"labels": targets[:, None], "id": ids}
    ids = np.array([[part.encode() for part in row] for row in rows])
    return arrays | {"labels": targets[:, None, None], "id": ids}


def _modalities(layout: _Layout) -> dict[str, SimulatedModality]:
    return {
        name: SimulatedModality(
            layout.widths[name],
            _FEW if layout.aligned or name == "text" else _MANY,
            INFORMATION[name],
            STRENGTH[name],
        )
        for name in MODALITIES
    }


def _pad(sequences: list[NDArray[np.float32]], layout: _Layout, name: str) -> NDArray[np.float32]:
    padded = np.zeros((len(sequences), layout.steps[name], layout.widths[name]), np.float32)
    for row, steps in zip(padded, sequences, strict=True):
        start = len(row) - len(steps) if layout.front else 0
        row[start : start + len(steps)] = steps
    return padded


def _spoil(audio: NDArray[np.float32], rng: np.random.Generator) -> None:
    real = audio.any(axis=2)
    chosen = real & (rng.random(real.shape) < _INFINITE)
    audio[chosen, 0] = -np.inf


def _mmsa(
    split: str,
    labels: NDArray[np.float64],
    lengths: Mapping[str, list[int]],
    layout: _Layout,
    text: NDArray[np.float32],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What MMSA adds; its text is BERT's output, where padded steps are not zero."""
    attention = np.arange(text.shape[1]) < np.array(lengths["text"])[:, None]
    text[~attention] = rng.standard_normal((int((~attention).sum()), text.shape[2]))
    tokens = rng.integers(1000, 30000, attention.shape) * attention
    names = np.array(["Negative", "Neutral", "Positive"])
    signs = np.sign(labels).astype(int) + 1
    added: dict[str, Any] = {
        "raw_text": [f"simulated sentence {n}" for n in range(len(labels))],
        "id": [f"{split}{n:04d}$_$0" for n in range(len(labels))],
        "text_bert": np.stack([tokens, attention, np.zeros_like(tokens)], axis=1),
        "annotations": names[signs].tolist(),
        "classification_labels": signs.astype(np.float32),
        "regression_labels": labels.astype(np.float32),
    }
    if not layout.aligned:
        added |= {f"{name}_lengths": lengths[name] for name in ("audio", "vision")}
    return added
