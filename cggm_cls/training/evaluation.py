"""Predictions and metrics of a network on one split, with all modalities or some of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cggm.distributed import gather_shards, shard
from cggm.tensors import evaluating
from cggm_cls.data import MaskedSequence, Measure, SequenceDataset, move
from cggm_cls.networks import SequenceNetwork


@torch.no_grad()
def predict(
    network: SequenceNetwork,
    dataset: SequenceDataset,
    *,
    batch_size: int = 64,
    present: Sequence[str] | None = None,
    sharded: bool = False,
) -> Tensor:
    """Predictions for a whole split, in its order; the network's mode is restored.

    Args:
        network: The network, on its device.
        dataset: The split.
        batch_size: Samples at once.
        present: Modalities that are there; every step of the others is masked. All if ``None``.
        sharded: Whether the ranks share the batches; every rank then calls this and gets all
            predictions, the same as without.

    Returns:
        On the CPU, shape ``(N, classes)`` or ``(N,)``.
    """
    parts = []
    starts: Sequence[int] = range(0, len(dataset), batch_size)
    starts = shard(starts) if sharded else starts
    with evaluating(network):
        for inputs in _batches(network, dataset, starts, batch_size):
            if present is not None:  # a sequence without real steps is how a modality is absent
                inputs = {name: x if name in present else _absent(x) for name, x in inputs.items()}
            parts.append(network(inputs).cpu())
    return torch.cat(gather_shards(parts) if sharded else parts)


@torch.no_grad()
def evaluate_heads(
    network: SequenceNetwork,
    heads: nn.ModuleDict,
    dataset: SequenceDataset,
    measure: Measure,
    *,
    batch_size: int = 64,
) -> dict[str, dict[str, Any]]:
    """Metrics of the head of each modality over the samples that have it, see :func:`evaluate`.

    Args:
        network: The network, on its device.
        heads: Modality to head, which takes what the encoder returns.
        dataset: The split.
        measure: See :func:`evaluate`.
        batch_size: Samples at once.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in heads}
    starts = range(0, len(dataset), batch_size)
    with evaluating(network), evaluating(heads):
        for inputs in _batches(network, dataset, starts, batch_size):
            encoded = network.encode(inputs)
            for name, head in heads.items():
                parts[name].append(head(encoded[name]).cpu())
    found = {}
    for name, predictions in parts.items():
        lengths = dataset.inputs[name].lengths[:: dataset.views.get(name, 1)]
        has, prediction = lengths > 0, torch.cat(predictions)
        if has.any():
            found[name] = dict(measure(prediction[has].numpy(), dataset.target[has].numpy()))
    return found


def evaluate(
    network: SequenceNetwork,
    dataset: SequenceDataset,
    measure: Measure,
    *,
    batch_size: int = 64,
    present: Sequence[str] | None = None,
    sharded: bool = False,
) -> dict[str, Any]:
    """Metrics on a whole split.

    Args:
        network: The network, on its device.
        dataset: The split.
        measure: Metrics of predictions and targets, see ``measure``.
        batch_size: Samples at once.
        present: Modalities that are there, all if ``None``.
        sharded: See :func:`predict`.
    """
    prediction = predict(network, dataset, batch_size=batch_size, present=present, sharded=sharded)
    return _metrics(prediction, dataset, measure)


def _batches(
    network: nn.Module, dataset: SequenceDataset, starts: Sequence[int], size: int
) -> Iterator[dict[str, MaskedSequence]]:
    device = next(network.parameters()).device
    for start in starts:
        positions = range(start, min(start + size, len(dataset)))
        yield move(dataset.batch(positions)["inputs"], device)


def _metrics(prediction: Tensor, dataset: SequenceDataset, measure: Measure) -> dict[str, Any]:
    return dict(measure(prediction.numpy(), dataset.target.numpy()))


def _absent(sequence: MaskedSequence) -> MaskedSequence:
    return MaskedSequence(sequence.values, torch.zeros_like(sequence.mask))
