"""Predictions and metrics of a network on one split."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cggm.modes import evaluating
from cggm_cls.metrics import classification_metrics, regression_metrics
from cggm_cls.networks import MultimodalTransformer
from cggm_cls.sequences import MaskedSequence, SequenceDataset, move


@torch.no_grad()
def predict(
    network: MultimodalTransformer,
    dataset: SequenceDataset,
    *,
    batch_size: int = 64,
    present: Sequence[str] | None = None,
) -> Tensor:
    """Predictions for a whole split, in its order; the network's mode is restored.

    Args:
        network: The network, on its device.
        dataset: The split.
        batch_size: Samples at once.
        present: Modalities that are there; every step of the others is masked. All if ``None``.

    Returns:
        On the CPU, shape ``(N, classes)`` or ``(N,)``.
    """
    parts = []
    with evaluating(network):
        for inputs in _batches(network, dataset, batch_size):
            if present is not None:
                inputs = {name: x if name in present else _absent(x) for name, x in inputs.items()}
            parts.append(network(inputs).cpu())
    return torch.cat(parts)


@torch.no_grad()
def evaluate_heads(
    network: MultimodalTransformer,
    heads: nn.ModuleDict,
    dataset: SequenceDataset,
    *,
    batch_size: int = 64,
) -> dict[str, dict[str, Any]]:
    """Metrics of the head of each modality, see :func:`evaluate`.

    Args:
        network: The network, on its device.
        heads: Modality to module that takes what the encoder returns.
        dataset: The split.
        batch_size: Samples at once.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in heads}
    with evaluating(network), evaluating(heads):
        for inputs in _batches(network, dataset, batch_size):
            encoded = network.encode(inputs)
            for name, head in heads.items():
                parts[name].append(head(encoded[name]).cpu())
    return {
        name: _metrics(torch.cat(predictions), dataset, network.classes)
        for name, predictions in parts.items()
    }


def evaluate(
    network: MultimodalTransformer,
    dataset: SequenceDataset,
    classes: int | None,
    *,
    batch_size: int = 64,
    present: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Metrics on a whole split, see :mod:`cggm_cls.metrics`.

    Args:
        network: The network, on its device.
        dataset: The split.
        classes: Number of classes, or ``None`` for regression.
        batch_size: Samples at once.
        present: Modalities that are there, all if ``None``.
    """
    prediction = predict(network, dataset, batch_size=batch_size, present=present)
    return _metrics(prediction, dataset, classes)


def _batches(
    network: nn.Module, dataset: SequenceDataset, size: int
) -> Iterator[dict[str, MaskedSequence]]:
    device = next(network.parameters()).device
    for start in range(0, len(dataset), size):
        positions = range(start, min(start + size, len(dataset)))
        yield move(dataset.batch(positions)["inputs"], device)


def _metrics(prediction: Tensor, dataset: SequenceDataset, classes: int | None) -> dict[str, Any]:
    values, target = prediction.numpy(), dataset.target.numpy()
    if classes is None:
        return dict(regression_metrics(values, target))
    return dict(classification_metrics(values, target, classes))


def _absent(sequence: MaskedSequence) -> MaskedSequence:
    return MaskedSequence(sequence.values, torch.zeros_like(sequence.mask))
