"""MRD: whole modalities are dropped at random while training."""

from collections.abc import Sequence
from math import prod
from random import Random

import torch
import torch.distributed as dist
from torch import Tensor

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.distributed import world_size
from cggm.heads import Criterion
from cggm.methods._parts import Numbers, per_modality
from cggm.passes import Step
from cggm.tensors import Features, batch_size, keep_samples, map_tensors


class ModalityDropout(Balancer):
    r"""Modality dropout (ModDrop: Neverova et al., TPAMI 2016), MRD in the paper of CGGM.

    A network that may lose any modality cannot lean on one of them. While training, what the
    encoders return is dropped at random; at test nothing is:

    .. math:: r_{bm} \sim \mathrm{Bernoulli}(1 - p_m) \text{ given } \textstyle\sum_m r_{bm} \ge 1,
              \quad \tilde h_{bm} = r_{bm} h_{bm} / \kappa_m

    with :math:`\kappa_m = 1`, or with ``scale`` the probability of being kept, which under the
    condition that one modality stays is :math:`q_m = (1 - p_m) / (1 - \prod_k p_k)`. A single
    modality is therefore never dropped. ``subsets="uniform"`` draws one of the :math:`2^M - 1`
    subsets evenly, as is usual for incomplete scans; that is p = 1/2 for every modality.

    Features are dropped and not inputs, so that batch statistics of the encoders never see zeros:
    zeros replace tensors of numbers, and false replaces bool masks, so that attention has no step
    of the modality to look at. Encoders of dropped samples get gradients of zero.

    A draw is a function of the seed, the optimizer steps made and the micro-batch, and for
    ``per="sample"`` of the rank: alike after a resume and in a recomputed region. No other
    generator is touched. The step after one that a gradient scaler skipped counts as the next
    micro-batch, which a resume between the two does not repeat.

    Any task and any number of modalities. The gain is robustness to missing modalities; do not
    expect much where all are present at test, nor use it where one modality is useless, for then
    samples are left with nothing to learn from. ``per="batch"`` makes losses of small batches
    noisy. ``p=0`` is joint training.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        p: Probability of dropping each modality before the condition, in [0, 1); the default is
            our choice, the paper of CGGM names none. Unused by uniform subsets.
        per: ``"sample"``, or ``"batch"`` for one draw for all samples on all ranks.
        scale: Whether kept features are divided by the probability of being kept.
        subsets: ``"independent"`` or ``"uniform"``.
        seed: Seed of the draws.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if ``p`` names other modalities
            than the encoders; in the first call, if encoders return batches of different sizes.
    """

    def __init__(
        self,
        task_loss: Criterion,
        *,
        p: Numbers = 0.2,
        per: str = "sample",
        scale: bool = False,
        subsets: str = "independent",
        seed: int = 0,
    ) -> None:
        super().__init__(task_loss)
        if per not in ("sample", "batch"):
            raise ValueError(f"Expected `per` 'sample' or 'batch', but got {per!r}.")
        if subsets not in ("independent", "uniform"):
            raise ValueError(f"Expected `subsets` 'independent' or 'uniform', but got {subsets!r}.")
        for value in [p] if isinstance(p, int | float) else p.values():
            if not 0 <= value < 1:
                raise ValueError(f"Expected `p` in [0, 1), but got {value}.")
        self.p: Numbers = 0.5 if subsets == "uniform" else p
        self.per, self.scale, self.seed = per, scale, seed
        self._dropped: list[float] = []
        self._drawn: tuple[str, Tensor] = ("", torch.ones(0))
        self._sizes: dict[str, int] = {}

    def prepare(self, binding: Binding) -> None:
        """Put the probabilities into the order of the encoders."""
        self._dropped = per_modality("p", self.p, binding.names).double().tolist()

    def fuse(self, name: str, features: Features) -> Features:
        """Features of the kept samples, zeros for the others."""
        size = self._sizes[name] = batch_size(features)
        index = self.binding.names.index(name)
        dropped = keep_samples(features, self._kept(size)[:, index])
        if not self.scale:
            return dropped
        kept = (1 - self._dropped[index]) / (1 - prod(self._dropped))
        return map_tensors(lambda x: x / kept if x.is_floating_point() else x, dropped)

    def loss(self, step: Step) -> Tensor:
        """Task loss.

        Raises:
            ValueError: If encoders return batches of different sizes.
        """
        if len(set(self._sizes.values())) > 1:
            raise ValueError(
                "Expected the batch as the first axis of what each encoder returns, but got "
                f"sizes {self._sizes}. Let encoders return batches of the same samples."
            )
        self.readings = {"term": self._drawn[1].float().mean(0)}
        return step.loss

    def _kept(self, size: int) -> Tensor:
        """Which samples keep which modality in this pass, bool, ``(B, M)``."""
        key = f"{self.seed} {self.clock.steps} {self.micro_batches - self.binding.recomputing}"
        if self.per == "sample":
            key += f" {dist.get_rank() if world_size() > 1 else 0} {size}"
        if key != self._drawn[0]:
            generator = torch.Generator().manual_seed(Random(key).getrandbits(63))
            kept = _draw(size if self.per == "sample" else 1, self._dropped, generator)
            self._drawn = (key, kept.to(self.binding.device, non_blocking=True))
        return self._drawn[1].expand(size, -1)


def _draw(rows: int, dropped: Sequence[float], generator: torch.Generator) -> Tensor:
    """Independent draws under the condition that one modality stays, bool, ``(rows, M)``."""
    uniform = torch.rand(rows, len(dropped), generator=generator, dtype=torch.float64)
    kept = torch.zeros(rows, len(dropped), dtype=torch.bool)
    for index, p in enumerate(dropped):
        # a sample that has nothing yet must keep one of those that are left
        first = (1 - p) / (1 - prod(dropped[index:]))
        kept[:, index] = uniform[:, index] < torch.where(kept.any(1), 1 - p, first)
    return kept
