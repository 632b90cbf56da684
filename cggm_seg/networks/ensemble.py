"""Ensemble of networks, such as those of a cross-validation: their probabilities are averaged."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Several networks as one, whose class probabilities are the mean of theirs.

    Members compute one after another, so that the memory is that of one of them; the time is that
    of all. Probabilities are averaged, not logits: a member that is very sure of itself has one
    vote like any other.

    Args:
        members: Networks that map ``(B, M, H, W)`` to logits ``(B, C, H, W)`` and name their
            channels in ``modalities``, alike in all of them.

    Raises:
        ValueError: If there is none, or they see different modalities.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        seen = [tuple(cast(Sequence[str], member.modalities)) for member in members]
        if len(set(seen)) != 1:
            raise ValueError(f"Expected members that see the same modalities, but got {seen}.")
        self.modalities = seen[0]
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, which are logits as well, ``(B, C, H, W)``.

        Args:
            images: Z-scored slices, shape ``(B, M, H, W)``.
        """
        mean = torch.zeros(())
        for member in self.members:
            # float32 also under autocast: the mean of bfloat16 would lose what members differ in
            probabilities = member(images).float().softmax(1)
            mean = probabilities / len(self.members) + mean
        return mean.log()
