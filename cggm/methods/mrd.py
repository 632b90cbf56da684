"""MRD: whole modalities are dropped at random while training."""

from torch import Tensor

from cggm.binding import Binding
from cggm.heads import Criterion
from cggm.methods._parts import DrawingBalancer, ModalityDraws, Numbers
from cggm.passes import Step
from cggm.tensors import Features, batch_size, map_tensors


class ModalityDropout(DrawingBalancer):
    r"""Modality dropout (ModDrop: Neverova et al., TPAMI 2016), MRD in the paper of CGGM.

    A network that may lose any modality cannot lean on one of them. While training, what the
    encoders return is dropped at random; at test nothing is:

    .. math:: r_{bm} \sim \mathrm{Bernoulli}(1 - p_m) \text{ given } \textstyle\sum_m r_{bm} \ge 1,
              \quad \tilde h_{bm} = r_{bm} h_{bm} / \kappa_m

    with :math:`\kappa_m = 1`, or with ``scale`` the probability of being kept, which under the
    condition that one modality stays is :math:`q_m = (1 - p_m) / (1 - \prod_k p_k)`. A single
    modality is therefore never dropped. ``subsets="uniform"`` draws one of the :math:`2^M - 1`
    subsets evenly, as is usual for incomplete scans; that is p = 1/2 for every modality.
    ``per="case"`` draws once for each training sample, which then lacks the same modalities in
    every epoch: the setting of data that are incomplete, simulated, as in RedCore and PASSION with
    rates of 0.2, 0.4, 0.6 and 0.8.

    Features are dropped and not inputs, so that batch statistics of the encoders never see zeros:
    zeros replace tensors of numbers, and false replaces bool masks, so that attention has no step
    of the modality to look at. Encoders of dropped samples get gradients of zero.

    A draw is a function of the seed, the optimizer steps made and the micro-batch, and for
    ``per="sample"`` of the rank, for ``per="case"`` of the seed and the sample alone: alike after a
    resume and in a recomputed region. No other generator is touched. The step after one that a
    gradient scaler skipped counts as the next micro-batch, which a resume between the two does not
    repeat.

    Samples that lack modalities keep one of those that they have; with ``scale`` they are divided
    by the probabilities of complete samples all the same.

    Any task and any number of modalities. The gain is robustness to missing modalities; do not
    expect much where all are present at test, nor use it where one modality is useless, for then
    samples are left with nothing to learn from. ``per="batch"`` makes losses of small batches
    noisy. ``p=0`` is joint training.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        p: Probability of dropping each modality before the condition, in [0, 1); the default is
            our choice, the paper of CGGM names none. Unused by uniform subsets.
        per: ``"sample"``, ``"batch"`` for one draw for all samples on all ranks, or ``"case"``, for
            which ``identify`` has to say before the forward pass which samples a batch holds.
        scale: Whether kept features are divided by the probability of being kept.
        subsets: ``"independent"`` or ``"uniform"``.
        seed: Seed of the draws.
        samples: Number of samples in the training data, for ``per="case"``.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if ``p`` names other modalities
            than the encoders; in the first call, if encoders return batches of different sizes.
        RuntimeError: In the forward pass, if ``per="case"`` and ``identify`` was not called.
    """

    serves_absence = True

    def __init__(
        self,
        task_loss: Criterion,
        *,
        p: Numbers = 0.2,
        per: str = "sample",
        scale: bool = False,
        subsets: str = "independent",
        seed: int = 0,
        samples: int | None = None,
    ) -> None:
        super().__init__(task_loss)
        self.draws = ModalityDraws(p, per, subsets, seed, samples)
        self.scale = scale
        self._shares: list[float] = []
        self._sizes: dict[str, int] = {}

    def prepare(self, binding: Binding) -> None:
        """Put the probabilities into the order of the encoders."""
        super().prepare(binding)
        self._shares = self.draws.shares().tolist()

    def fuse(self, name: str, features: Features) -> Features:
        """Features of the kept samples, zeros for the others."""
        self._sizes[name] = batch_size(features)
        dropped = self.draws.drop(self, name, features)
        if not self.scale:
            return dropped
        share = self._shares[self.binding.names.index(name)]
        return map_tensors(lambda x: x / share if x.is_floating_point() else x, dropped)

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
        kept = self.draws.last.float().mean(0)
        self.readings = {"term": kept.to(self.binding.device, non_blocking=True)}
        return step.loss
