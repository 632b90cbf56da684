"""Sequences of any length, per modality: how they are kept, and the batches that networks take.

Read from top to bottom: a batch (:class:`Batch`) of padded sequences (:class:`MaskedSequence`) is
cut from sequences without padding (:class:`RaggedSequences`), which a split
(:class:`SequenceDataset`) has one of for each modality; three splits are the data of a task
(:class:`TaskData`). A reader of a data set returns a ``TaskData``.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cggm.runs import require_names
from cggm_cls.metrics import classification_metrics, regression_metrics


class MaskedSequence(NamedTuple):
    """Padded sequences of one modality.

    Attributes:
        values: Shape ``(B, T, D)``; padded steps may hold anything finite.
        mask: Bool, shape ``(B, T)``, true where a step is real; padding may be on any side.
    """

    values: Tensor
    mask: Tensor


def move(inputs: Mapping[str, MaskedSequence], device: torch.device) -> dict[str, MaskedSequence]:
    """The inputs of a batch on a device.

    Args:
        inputs: Modality to sequences.
        device: Where the network is.
    """
    return {
        name: MaskedSequence(x.values.to(device), x.mask.to(device)) for name, x in inputs.items()
    }


class Batch(TypedDict):
    """What a data set gives for some of its samples.

    Attributes:
        inputs: Modality to sequences.
        target: Shape ``(B,)``, int64 classes or float32 values.
        ids: Identifier of each sample.
        positions: Of each sample in its split, int64, shape ``(B,)``.
    """

    inputs: dict[str, MaskedSequence]
    target: Tensor
    ids: list[str]
    positions: Tensor


class RaggedSequences:
    """N sequences without padding, one after another.

    Args:
        values: The steps of all sequences, float16 or float32, shape ``(S, D)``; may be a
            memory map.
        offsets: Where each sequence begins, and the end, int64, shape ``(N + 1,)``.

    Raises:
        ValueError: If the offsets do not rise from 0 to S.
    """

    def __init__(self, values: Tensor, offsets: Tensor) -> None:
        rises = len(offsets) > 0 and offsets[0] == 0 and bool((offsets.diff() >= 0).all())
        if values.ndim != 2 or not rises or offsets[-1] != len(values):
            raise ValueError(
                f"Expected offsets that rise from 0 to the number of steps, but got values of "
                f"shape {tuple(values.shape)} and offsets {offsets.tolist()[:3]}..."
            )
        self.values = values
        self.offsets = offsets

    @classmethod
    def from_padded(cls, values: Tensor, mask: Tensor) -> "RaggedSequences":
        """Keep the real steps alone, in their order.

        Args:
            values: Shape ``(N, T, D)``.
            mask: True where a step is real, shape ``(N, T)``.
        """
        ends = mask.sum(1).cumsum(0)
        return cls(values[mask], torch.cat([ends.new_zeros(1), ends]))

    @classmethod
    def from_list(cls, sequences: Sequence[Tensor]) -> "RaggedSequences":
        """Join sequences.

        Args:
            sequences: Each of shape ``(T_i, D)``; one without steps is allowed.
        """
        ends = torch.tensor([0, *(len(sequence) for sequence in sequences)]).cumsum(0)
        return cls(torch.cat([*sequences]), ends)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def width(self) -> int:
        """Features of a step, D."""
        return self.values.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Steps of each sequence, shape ``(N,)``."""
        return self.offsets.diff()

    def chosen(self, positions: Sequence[int]) -> "RaggedSequences":
        """Some of the sequences.

        Args:
            positions: Which ones.
        """
        ends = self.offsets.tolist()
        return self.from_list([self.values[ends[k] : ends[k + 1]] for k in positions])

    def pad(self, positions: Sequence[int]) -> MaskedSequence:
        """Some of the sequences as float32, padded with zeros at the end to the longest of them.

        Args:
            positions: Which sequences; at least one step is given even if all are empty.
        """
        # One gather for the whole batch: row b holds the indices of its steps, as far as it goes.
        chosen = torch.as_tensor(positions)
        starts, ends = self.offsets[chosen], self.offsets[chosen + 1]
        steps = starts[:, None] + torch.arange(max(1, int((ends - starts).max())))
        mask = steps < ends[:, None]
        values = torch.zeros(*mask.shape, self.width)
        values[mask] = self.values[steps[mask]].float()
        return MaskedSequence(values, mask)


@dataclass(frozen=True)
class SequenceDataset(Dataset[Batch]):
    """Samples of one split, indexed by ``(epoch, position)``.

    Args:
        inputs: Modality to sequences; those of a modality with K views follow one another, the
            unchanged view first.
        target: Shape ``(N,)``, int64 classes or float32 values.
        ids: Identifier of each sample.
        views: Modality to its number of views, 1 where not given.
        seed: Base of the choice of views.

    Raises:
        ValueError: If the modalities, targets and identifiers are not equally many.
    """

    inputs: Mapping[str, RaggedSequences]
    target: Tensor
    ids: Sequence[str]
    views: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {n: len(s) / self.views.get(n, 1) for n, s in self.inputs.items()}
        counts |= {"target": len(self.target), "ids": len(self.ids)}
        if len(set(counts.values())) != 1:
            raise ValueError(f"Expected equally many samples everywhere, but got {counts}.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def widths(self) -> dict[str, int]:
        """Features of a step of each modality."""
        return {name: sequences.width for name, sequences in self.inputs.items()}

    def batch(self, positions: Sequence[int], epoch: int | None = None) -> Batch:
        """Some samples.

        Args:
            positions: Their places in the split, in the order of the batch.
            epoch: Chooses a view of each sample, together with seed and position; the unchanged
                view where ``None``, as for evaluation.
        """
        inputs = {
            name: sequences.pad(self._rows(name, positions, epoch))
            for name, sequences in self.inputs.items()
        }
        chosen = torch.as_tensor(positions)
        return {
            "inputs": inputs,
            "target": self.target[chosen],
            "ids": [self.ids[position] for position in positions],
            "positions": chosen,
        }

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """A training batch; the loader's ``collate_fn`` has nothing left to do.

        Args:
            keys: Epoch, the same for all, and position of each sample.
        """
        return self.batch([position for _, position in keys], epoch=keys[0][0])

    def has_any(self, position: int) -> bool:
        """Whether a sample has a step of any modality.

        Args:
            position: Of a sample, in data of one view.
        """
        return any(bool(s.lengths[position]) for s in self.inputs.values())

    def chosen(self, positions: Sequence[int]) -> "SequenceDataset":
        """Some samples of data of one view, as a split of their own.

        Args:
            positions: Their places.
        """
        return replace(
            self,
            inputs={name: sequences.chosen(positions) for name, sequences in self.inputs.items()},
            target=self.target[torch.as_tensor(positions)],
            ids=[self.ids[position] for position in positions],
        )

    def _rows(self, name: str, positions: Sequence[int], epoch: int | None) -> Sequence[int]:
        """Which sequences of a modality stand for samples, a view of each one chosen."""
        views = self.views.get(name, 1)
        if views == 1 or epoch is None:
            return [position * views for position in positions]
        # A generator per sample, so that the view depends on neither batch nor rank.
        draw = (np.random.default_rng([self.seed, epoch, p]).integers(views) for p in positions)
        return [p * views + int(view) for p, view in zip(positions, draw, strict=True)]


Measure = Callable[[np.ndarray, np.ndarray], Mapping[str, Any]]
"""Metrics of predictions and targets, by name; a value is a number, ``None`` where it is undefined,
or a list, such as a confusion matrix. The name of every number is registered."""


@dataclass(frozen=True)
class Scaling:
    """How the features of a modality were scaled: less ``mean``, over ``deviation``.

    Args:
        mean: Shape ``(D,)``, or ``(T, D)`` where every step has its own.
        deviation: As ``mean``, positive.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def cut(self, steps: int) -> "Scaling":
        """The same for features that are cut into steps, ``(steps, D / steps)``.

        Args:
            steps: Equal parts; one leaves it as it is.
        """
        if steps == 1:
            return self
        return Scaling(self.mean.reshape(steps, -1), self.deviation.reshape(steps, -1))


@dataclass(frozen=True)
class TaskData:
    """The splits of a task, and the metrics that judge its predictions.

    Args:
        train: For training.
        valid: For selection.
        test: Looked at once, with the selected weights.
        classes: Number of classes, or ``None`` for regression.
        digest: Changes whenever the content does.
        simulated: Whether nothing here was measured.
        notes: What loading found or changed, a sentence each, for the user to read.
        names: Of the classes, in order; empty where they are not known.
        own_measure: Metrics in the place of those of :mod:`cggm_cls.metrics`; it takes logits of
            shape ``(N, C)`` or values of shape ``(N,)``, and targets. The selection of checkpoints
            needs ``acc`` or, for regression, ``mae`` among them.
        absences: Whether training samples may lack a modality, that is, have a sequence without a
            step; the method is then told which, and has to serve that.
        scaling: How the features of each modality were scaled; none where they were not.
    """

    train: SequenceDataset
    valid: SequenceDataset
    test: SequenceDataset
    classes: int | None
    digest: str
    simulated: bool = False
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    own_measure: Measure | None = None
    absences: bool = False
    scaling: Mapping[str, Scaling] = field(default_factory=dict)

    @property
    def measure(self) -> Measure:
        """Metrics of predictions of this task."""
        if self.own_measure is not None:
            return self.own_measure
        if self.classes is None:
            return regression_metrics
        return partial(classification_metrics, classes=self.classes)

    @property
    def widths(self) -> dict[str, int]:
        """Features of a step of each modality."""
        return self.train.widths

    def only(self, modalities: Sequence[str]) -> "TaskData":
        """The same samples without the other modalities, in the order of the data.

        Args:
            modalities: Those that stay.

        Raises:
            UserError: If a modality is unknown, none is given, or one twice.
        """
        known = list(self.widths)
        require_names("modalities", modalities, known)
        names = [name for name in known if name in modalities]

        def keep(split: SequenceDataset) -> SequenceDataset:
            return replace(split, inputs={name: split.inputs[name] for name in names})

        train = keep(self.train)
        if self.absences:  # a sample without any modality has nothing to learn from
            train = train.chosen([k for k in range(len(train)) if train.has_any(k)])
        return replace(
            self,
            train=train,
            valid=keep(self.valid),
            test=keep(self.test),
            scaling={name: own for name, own in self.scaling.items() if name in names},
            absences=self.absences and len(names) > 1,
        )


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
    # Types and shapes as well: the bytes alone would be equal for some different arrays.
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().numpy().data)
