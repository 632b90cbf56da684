"""Predictions and metrics of a network on one split."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    device = network.output_layer.weight.device
    training = network.training
    network.eval()
    parts = []
    for start in range(0, len(dataset), batch_size):
        positions = range(start, min(start + batch_size, len(dataset)))
        inputs = move(dataset.batch(positions)["inputs"], device)
        if present is not None:
            inputs = {name: x if name in present else _absent(x) for name, x in inputs.items()}
        parts.append(network(inputs).cpu())
    network.train(training)
    return torch.cat(parts)


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
    prediction = predict(network, dataset, batch_size=batch_size, present=present).numpy()
    target = dataset.target.numpy()
    if classes is None:
        return dict(regression_metrics(prediction, target))
    return dict(classification_metrics(prediction, target, classes))


def _absent(sequence: MaskedSequence) -> MaskedSequence:
    return MaskedSequence(sequence.values, torch.zeros_like(sequence.mask))
