"""Scores of the modalities by epoch, each against its recent mean."""

import torch
from torch import Tensor, nn


class EpochScores(nn.Module):
    """Mean score of each epoch, and how it compares with the last epochs'.

    Validation scores, where they were given for an epoch, take the place of the training scores.

    Args:
        modalities: Number of scores.
        window: Epochs of the recent mean, the one that ends included.
    """

    total: Tensor
    steps: Tensor
    validation: Tensor
    history: Tensor

    def __init__(self, modalities: int, window: int) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(modalities))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("validation", torch.full((modalities,), torch.nan))
        self.register_buffer("history", torch.full((window, modalities), torch.nan))

    def add(self, scores: Tensor) -> None:
        """Add the training scores of one optimizer step, ``(M,)``."""
        self.total += scores
        self.steps += 1

    def validate(self, scores: Tensor) -> None:
        """Take validation scores for the epoch under way, ``(M,)``."""
        self.validation.copy_(scores)

    def close(self) -> Tensor:
        """End the epoch.

        Returns:
            Ratio of each score to its recent mean, ``(M,)``, see :func:`score_ratios`.
        """
        trained = self.total / self.steps
        scores = torch.where(self.validation.isnan(), trained, self.validation)
        self.history.copy_(torch.cat([self.history[1:], scores[None]]))
        self.validation.fill_(torch.nan)
        self.total.zero_()
        self.steps.zero_()
        return score_ratios(scores, self.history.nanmean(0))


def score_ratios(scores: Tensor, means: Tensor) -> Tensor:
    """Ratio of each score to its mean, above 1 for the better one, whatever the sign.

    Args:
        scores: Higher is better, ``(M,)``; negated errors are all negative.
        means: Mean of each, ``(M,)``.

    Returns:
        ``scores / means``, the inverse for negative means; 1 where the sign changes or a value is
        not a number.
    """
    up = (scores >= 0) & (means > 0)
    down = (scores <= 0) & (means < 0)
    above, below = scores.abs(), means.abs()
    return torch.where(up, above / below, torch.where(down, below / above, 1.0))
