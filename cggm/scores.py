"""Scores of the heads over a window of micro-batches, and the gains taken from them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cggm.distributed import sum_over_ranks
from cggm.functional import ema_gains, signal_gates
from cggm.tensors import map_tensors

Score = Callable[[Tensor, Any], Tensor | tuple[Tensor, ...]]

GAINS = ("ema", "batch")


def score_counts(score: Score, prediction: Tensor, target: Any) -> Tensor:  # noqa: ANN401
    """Numerators and denominators of a score, so that it can be summed before it is divided.

    Args:
        score: ``(prediction, target)`` to a scalar, which is averaged over samples, or to a pair of
            numerators and denominators of shape ``(K,)``, whose score is the mean of the K ratios;
            a third may be what the target holds of each, ``(K,)``: ratios count where it is not 0.
        prediction: A head's prediction, shape ``(B, ...)``.
        target: What the task loss compares it with.

    Returns:
        Shape ``(2, K)``, or ``(3, K)`` where the target's share was given, float32.
    """
    value = score(prediction, target)
    if isinstance(value, tuple):
        return torch.stack([part.float().reshape(-1) for part in value])
    size = prediction.shape[0]
    return torch.stack([value.detach().float() * size, value.new_full((), size).float()])[:, None]


def with_chance(score: Score) -> Score:
    """A score and what chance gives: the same predictions against the next sample's target.

    A single sample meets its own target mirrored along every spatial axis; where it has none, it is
    its own chance.

    Args:
        score: See :func:`score_counts`.

    Returns:
        Score of twice as many numerators and denominators, those of chance in the second half.
    """

    def both(prediction: Tensor, target: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        moved = map_tensors(_elsewhere, target)
        counts = [score_counts(score, prediction, t) for t in (target, moved)]
        return tuple(torch.cat(counts, 1))

    return both


def _elsewhere(target: Tensor) -> Tensor:
    return target.roll(1, 0) if len(target) > 1 else target.flip(tuple(range(1, target.ndim)))


def ratio_score(counts: Tensor) -> Tensor:
    """Mean of the ratios, where 0/0 counts as 1: nothing to find and nothing found.

    Args:
        counts: Numerators and denominators, shape ``(M, 2, K)``; with what the target holds of
            each, ``(M, 3, K)``, the mean is taken over the ratios of which it holds something.

    Returns:
        Scores, shape ``(M,)``; NaN where the target holds nothing of all.
    """
    above, below, *held = counts.unbind(1)
    empty = (below == 0) & (above == 0)
    ratios = torch.where(empty, 1.0, above / torch.where(empty, 1.0, below))
    if not held:
        return ratios.mean(1)
    counted = held[0] != 0
    return torch.where(counted, ratios, 0.0).sum(1) / counted.sum(1)


class ScoreTracker(nn.Module):
    """Scores of M heads and their gains.

    The score of a window is taken over all its micro-batches and all ranks. ``gains`` looks one
    step ahead without moving the state, which ``commit`` does once the optimizer has stepped.

    Args:
        modalities: Number of heads.
        gain: ``"ema"``, fast minus slow moving average, or ``"batch"``, the difference to the last
            step (the paper; the score before the first step is 0).
        betas: Decay of the fast and of the slow average.
    """

    fast: Tensor
    slow: Tensor
    last: Tensor
    steps: Tensor

    def __init__(
        self, modalities: int, gain: str = "ema", betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__()
        if gain not in GAINS:
            raise ValueError(f"Expected `gain` to be one of {list(GAINS)}, but got {gain!r}.")
        if not all(0 <= beta < 1 for beta in betas) or betas[0] >= betas[1]:
            raise ValueError(f"Expected `betas` to be 0 <= fast < slow < 1, but got {betas}.")
        self.gain = gain
        self.betas = betas
        for name in ("fast", "slow", "last"):
            self.register_buffer(name, torch.zeros(modalities))
        self.register_buffer("steps", torch.zeros(()))
        self._window: Tensor | None = None

    def add(self, counts: Tensor) -> None:
        """Add one micro-batch, ``(M, 2, K)`` or ``(M, 3, K)``, to the window."""
        (total,) = sum_over_ranks([counts])
        self._window = total if self._window is None else self._window + total

    def scores(self) -> Tensor:
        """Scores of the window so far, ``(M,)``; the last one where a score is not finite."""
        if self._window is None:
            raise RuntimeError("No batch was scored since the last step.")
        scores = ratio_score(self._window).to(self.last.dtype)
        return torch.where(torch.isfinite(scores), scores, self.last)

    def gains(self) -> Tensor:
        """Gains that the window's scores bring, ``(M,)``, higher is better."""
        scores = self.scores()
        if self.gain == "batch":
            return scores - self.last
        return ema_gains(*self._averaged(scores), self.steps + 1, self.betas)

    def level(self) -> Tensor:
        """Fast moving average of the scores with the window's, without bias correction."""
        return self._averaged(self.scores())[0]

    def gates(self) -> Tensor:
        """Trust in each modality, ``(M,)``: full."""
        return torch.ones_like(self.last)

    def commit(self) -> None:
        """Move the state by the window's scores and open the next window."""
        scores = self.scores()
        fast, slow = self._averaged(scores)
        self.fast.copy_(fast)
        self.slow.copy_(slow)
        self.last.copy_(scores)
        self.steps += 1
        self._window = None

    def keep(self, kept: Tensor | bool) -> None:
        """Forget the window unless ``kept``, without asking the device."""
        if self._window is not None:
            self._window = torch.where(torch.as_tensor(kept), self._window, 0.0)

    def _averaged(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        fast, slow = self.betas
        return torch.lerp(scores, self.fast, fast), torch.lerp(scores, self.slow, slow)


class SignalTracker(ScoreTracker):
    """Scores, gains, and trust by how far the scores are above chance.

    Takes counts of :func:`with_chance`. Signal is the fast moving average of the scores less that
    of chance, whichever way gains are taken.

    Args:
        modalities: Number of heads.
        gain: See :class:`ScoreTracker`.
        betas: See :class:`ScoreTracker`.
    """

    def __init__(
        self, modalities: int, gain: str = "ema", betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(modalities, gain, betas)
        self.chance = ScoreTracker(modalities, gain, betas)

    def add(self, counts: Tensor) -> None:
        """Add one micro-batch, ``(M, 2, 2K)`` or ``(M, 3, 2K)``, to the window."""
        found, chance = counts.chunk(2, -1)
        super().add(found)
        self.chance.add(chance)

    def gates(self) -> Tensor:
        """Trust in each modality, ``(M,)``, see :func:`cggm.functional.signal_gates`."""
        # without bias correction, which is the same factor for all and cancels in shares
        return signal_gates(self.level() - self.chance.level())

    def commit(self) -> None:
        """Move the state by the window's scores and open the next window."""
        super().commit()
        self.chance.commit()

    def keep(self, kept: Tensor | bool) -> None:
        """Forget the window unless ``kept``, without asking the device."""
        super().keep(kept)
        self.chance.keep(kept)
