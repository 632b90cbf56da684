"""Scores of CGGM's heads, see :data:`cggm.scores.Score`: scalars that are means over samples.

Both stay on the device. Weighted by the size of each micro-batch, as
:func:`cggm.scores.score_counts` does, they add up to the score of the whole batch; a micro-batch
without samples has no score (NaN).
"""

from torch import Tensor


def negative_mae(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, negated so that higher is better.

    Args:
        prediction: Values, shape ``(B,)`` or ``(B, 1)``.
        target: Shape ``(B,)``.
    """
    return -(prediction.reshape(target.shape).float() - target).abs().mean()


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of samples whose greatest logit is that of their class.

    Args:
        prediction: Logits, shape ``(B, C)``.
        target: Classes, int64, shape ``(B,)``.
    """
    return (prediction.argmax(1) == target).float().mean()
