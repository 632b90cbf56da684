"""Draws of which samples keep which modality, as if scans or channels were missing."""

from collections.abc import Mapping, Sequence
from math import prod
from random import Random

import torch
import torch.distributed as dist
from torch import Tensor

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.distributed import world_size
from cggm.methods._parts.numbers import Numbers, per_modality
from cggm.tensors import Features, Presence, batch_size, keep_samples

_PER = ("sample", "batch", "case")
_SUBSETS = ("independent", "uniform")


class ModalityDraws:
    r"""Which samples keep which modality.

    .. math:: r_{bm} \sim \mathrm{Bernoulli}(1 - p_m) \text{ given } \textstyle\sum_m r_{bm} \ge 1

    A draw is a function of the seed, the optimizer steps made and the micro-batch, and for
    ``per="sample"`` of the rank. For ``per="case"`` it is one of the seed and of the sample's
    position in the training data, so that a sample lacks the same modalities in every epoch.

    Samples that lack modalities, see :meth:`cggm.Balancer.present`, keep one of those that they
    have: by the condition above for ``per="sample"``; otherwise one that would lose all it has
    keeps it all.

    Args:
        p: Probability of dropping each modality before the condition, in [0, 1).
        per: ``"sample"``, ``"batch"`` for one draw for all samples on all ranks, or ``"case"``.
        subsets: ``"independent"``, or ``"uniform"`` for one of all subsets but the empty one, which
            is p = 1/2 for every modality.
        seed: Seed of the draws.
        samples: Number of samples in the training data; needed for ``per="case"``.

    Attributes:
        positions: Those of the coming batch's samples in the training data, where they were told.
        last: Which samples kept which modality in the last pass, bool, ``(B, M)``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, p: Numbers, per: str, subsets: str, seed: int, samples: int | None) -> None:
        if per not in _PER:
            raise ValueError(f"Expected `per` 'sample', 'batch' or 'case', but got {per!r}.")
        if subsets not in _SUBSETS:
            raise ValueError(f"Expected `subsets` 'independent' or 'uniform', but got {subsets!r}.")
        for value in p.values() if isinstance(p, Mapping) else [p]:
            if not 0 <= value < 1:
                raise ValueError(f"Expected `p` in [0, 1), but got {value}.")
        self.p: Numbers = 0.5 if subsets == "uniform" else p
        if per == "case" and samples is None and self.active:
            raise ValueError("Expected `samples`, of which each has a draw, for per='case'.")
        self.per, self.seed = per, seed
        self.positions: Tensor | None = None
        self.last = torch.ones(0)
        self._samples = samples
        self._dropped: list[float] = []
        self._by_case = torch.ones(0)
        self._drawn: tuple[str, Tensor] = ("", torch.ones(0))

    @property
    def active(self) -> bool:
        """Whether anything can be dropped."""
        return any(self.p.values()) if isinstance(self.p, Mapping) else self.p > 0

    def prepare(self, names: Sequence[str]) -> None:
        """Put the probabilities into the order of the encoders, and draw for each sample.

        Args:
            names: The encoders'.

        Raises:
            ValueError: If ``p`` names other modalities.
        """
        self._dropped = per_modality("p", self.p, names).double().tolist()
        if self.per == "case":
            generator = torch.Generator().manual_seed(Random(f"{self.seed}").getrandbits(63))
            dropped = torch.tensor(self._dropped, dtype=torch.float64)
            self._by_case = _draw(dropped.expand(self._samples or 1, -1), generator)

    def shares(self) -> Tensor:
        r"""Share of the samples that keep each modality, ``(M,)``, float32.

        It is that of the training data for ``per="case"`` and else the probability
        :math:`q_m = (1 - p_m) / (1 - \prod_k p_k)`.
        """
        if self.per == "case":
            return self._by_case.float().mean(0)
        none = prod(self._dropped)
        return torch.tensor([(1 - p) / (1 - none) for p in self._dropped])

    def kept(self, balancer: Balancer, size: int) -> Tensor:
        """Which samples keep which modality in a pass, bool, ``(B, M)``, on the processor.

        What a sample lacks it does not keep.

        Args:
            balancer: The bound method, whose clock and micro-batch tell passes apart.
            size: Samples in the batch.

        Raises:
            RuntimeError: If each sample has a draw and it was not said which the batch holds.
        """
        present = balancer.told_present(size)
        if self.per == "case":
            drawn = self._by_case[self._positions(type(balancer).__name__, size)]
            return _not_empty(drawn, present)
        micro_batch = balancer.micro_batches - balancer.binding.recomputing
        key = f"{self.seed} {balancer.clock.steps} {micro_batch}"
        if self.per == "sample":
            key += f" {dist.get_rank() if world_size() > 1 else 0} {size}"
        if key != self._drawn[0]:
            generator = torch.Generator().manual_seed(Random(key).getrandbits(63))
            dropped = torch.tensor(self._dropped, dtype=torch.float64)
            # what a sample lacks is dropped for certain
            rows = torch.where(present, dropped, 1.0) if self.per == "sample" else dropped[None]
            self._drawn = (key, _draw(rows, generator))
        return _not_empty(self._drawn[1].expand(size, -1), present)

    def drop(self, balancer: Balancer, name: str, features: Features) -> Features:
        """Features of the samples that keep a modality in this pass, zeros for the others.

        Args:
            balancer: The bound method.
            name: The modality.
            features: What its encoder returned.
        """
        binding = balancer.binding
        self.last = self.kept(balancer, batch_size(features))
        kept = self.last[:, binding.names.index(name)]
        return keep_samples(features, kept.to(binding.device, non_blocking=True))

    def presence(self, names: Sequence[str]) -> Presence:
        """What the last pass kept, as if the other samples had no such modality.

        Args:
            names: The encoders'.
        """
        return Presence(dict(zip(names, self.last.unbind(1), strict=True)))

    def _positions(self, method: str, size: int) -> Tensor:
        positions = None if self.positions is None else self.positions.detach().cpu().long()
        if positions is None or positions.shape != (size,):
            found = "none" if positions is None else f"shape {tuple(positions.shape)}"
            raise RuntimeError(
                f"Expected the positions of the batch's {size} samples in the training data before "
                f"the forward pass, because {method} takes the same modalities from a sample in "
                f"every epoch, but got {found}. Attach a BalanceHandler with `identify=`, or call "
                "`identify(samples)`."
            )
        first, last = int(positions.min()), int(positions.max())
        if not 0 <= first <= last < len(self._by_case):
            raise ValueError(
                f"Expected positions below `samples`, {len(self._by_case)}, but got {first} to "
                f"{last}. Correct `identify` or `samples`."
            )
        return positions


class DrawingBalancer(Balancer):
    """Base of methods that take modalities from samples while training.

    Attributes:
        draws: Which modalities of which samples.
    """

    draws: ModalityDraws

    def prepare(self, binding: Binding) -> None:
        """Put the probabilities into the order of the encoders."""
        self.draws.prepare(binding.names)

    def identify(self, samples: Tensor) -> None:
        """Note which samples the coming batch holds."""
        self.draws.positions = samples

    def fuse(self, name: str, features: Features) -> Features:
        """Features of the samples that keep the modality."""
        return self.draws.drop(self, name, features) if self.draws.active else features


def _draw(dropped: Tensor, generator: torch.Generator) -> Tensor:
    """Independent draws under the condition that one modality stays, bool, ``(B, M)``.

    Args:
        dropped: Probability of dropping each, ``(B, M)``; below 1 for one of each row at least.
        generator: Of the draws.
    """
    uniform = torch.rand(dropped.shape, generator=generator, dtype=torch.float64)
    kept = torch.zeros(dropped.shape, dtype=torch.bool)
    for index in range(dropped.shape[1]):
        p = dropped[:, index]
        # a sample that has nothing yet must keep one of those that are left
        first = (1 - p) / (1 - dropped[:, index:].prod(1))
        kept[:, index] = uniform[:, index] < torch.where(kept.any(1), 1 - p, first)
    return kept


def _not_empty(kept: Tensor, present: Tensor) -> Tensor:
    """What is kept of what is there, or all that is there where that would be nothing."""
    both = kept & present
    return torch.where(both.any(1, keepdim=True), both, present)
