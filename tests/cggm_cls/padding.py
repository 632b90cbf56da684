"""The same sequences with padding of any place, length and content."""

import torch

from cggm_cls.data.sequences import MaskedSequence

PADDINGS = ["longer", "front", "both sides", "scattered", "garbage", "huge"]


def ragged(widths, lengths):
    """Random sequences: modality to one tensor of shape (T_i, D) per sample."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: [torch.randn(steps, width, generator=generator) for steps in lengths[name]]
        for name, width in widths.items()
    }


def padded(sequences, padding="end"):
    """The sequences of one modality, padded."""
    longest = max(len(sequence) for sequence in sequences)
    total = max(1, longest) if padding == "end" else longest + 3
    mask = torch.zeros(len(sequences), total, dtype=torch.bool)
    values = torch.zeros(*mask.shape, sequences[0].shape[1])
    if padding == "garbage":
        values = 100 * torch.randn(values.shape)
    if padding == "huge":
        values.fill_(torch.finfo(torch.float32).max)
    for row, sequence in enumerate(sequences):
        places = _places(len(sequence), total, padding)
        mask[row, places] = True
        values[row, places] = sequence
    return MaskedSequence(values, mask)


def _places(steps, total, padding):
    places = torch.arange(steps)
    if padding == "front":
        return places + total - steps
    if padding == "both sides":
        return places + (total - steps) // 2
    if padding == "scattered":
        return torch.randperm(total)[:steps].sort().values
    return places
