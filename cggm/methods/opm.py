"""OPM: on-the-fly prediction modulation."""

from collections.abc import Mapping
from random import Random

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.distributed import world_size
from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.methods._parts import channel_axis, confidence_ratios, confidence_score
from cggm.passes import Step
from cggm.scores import Score, ratio_score
from cggm.tensors import Features, keep_samples, map_tensors, tensors_in


class OPM(Balancer):
    r"""On-the-fly prediction modulation (Wei et al., TPAMI 2024), the sibling of :class:`OGM`.

    Beyond the systems that CGGM was compared with. A modality that is ahead is taken away from a
    sample as a whole with the probability q, so that the fusion cannot lean on it. With the summed
    probability of the true class, :math:`s_m = \sum_b \mathrm{softmax}(z_m)_{b, y_b}`, and the
    width :math:`d_m` of what encoder m returns,

    .. math:: \rho_m = \frac{s_m}{\mathrm{mean}_{k \neq m} s_k}, \quad
              q_m = q_{base} (1 + \lambda \tanh(\rho_m - 1)) \text{ if } \rho_m > 1 \text{ else } 0

    .. math:: \tilde h_{m,b} = \frac{r_{m,b} h_{m,b}}{1 - \theta}, \quad
              r_{m,b} \sim \mathrm{Bern}(1 - q_m), \quad
              \theta = \frac{\sum_m d_m q_m}{\sum_m d_m}, \quad
              L = L_{task}(f(\tilde h), y)

    What is kept is enlarged in all modalities alike. At each optimizer step this happens with the
    probability :math:`p_{exe}`; other steps are joint ones. It acts in the forward pass, so that no
    optimizer cancels it. It costs the heads and, where it happens, one more pass through the fusion
    in the mode that the network is in. That pass moves no running statistics: they see all
    features, as at inference.

    Published: two modalities, classification, features that are vectors, six epochs of warm-up. No
    sample loses all, as the modality that is furthest behind is never dropped. Our extensions:

    - heads that learn from detached features judge, on features of which nothing is dropped; the
      paper splits the linear layer on concatenated features;
    - three and more modalities: each against the mean of the others; a single one is left alone;
    - regression and dense prediction by ``score``. If a score is negative, such as a negated error,
      exponentials of the scores are compared;
    - sequences and maps are dropped as a whole, with their masks, and the width is that of their
      channels: the last axis where the output layer is linear, the second where it is a
      convolution. Tensors of several levels add up.

    Under accumulation the scores are the window's so far. A draw is a function of the seed, the
    rank, the optimizer steps made and the micro-batch; whether to drop is drawn alike on all ranks
    and in a window.

    Do not use it where a modality carries no signal: the others are dropped for nothing. q
    jumps from 0 to its base where the ratio passes 1, so one of two near equals is always dropped.
    A loop of one's own must call ``start_epoch``, or it stays in epoch 1, a warm-up by default.

    Args:
        heads: Modality name to head, see :class:`cggm.CGGM`.
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        score: See :func:`cggm.scores.score_counts`. Used where the prediction is not logits
            ``(B, C)`` or the target not class indices ``(B,)``; there the published one serves.
        q_base: Probability of dropping at ratio 1, not negative; 0 is joint training.
        lam: How much it grows with the ratio, not negative; ``q_base * (1 + lam)`` is below 1.
        p_exe: Probability that a step drops, in [0, 1].
        warmup_epochs: Epochs of joint training at first, while heads are untrained.
        seed: Seed of the draws; the same on all ranks.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if the network has no ``decode``;
            in the first call, if a score is needed and missing.
    """

    replaces_loss = True
    heads: Heads

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        task_loss: Criterion,
        score: Score | None = None,
        *,
        q_base: float = 0.5,
        lam: float = 0.5,
        p_exe: float = 0.7,
        warmup_epochs: int = 6,
        seed: int = 0,
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        if min(q_base, lam) < 0 or q_base * (1 + lam) >= 1:
            raise ValueError(
                "Expected `q_base` and `lam` not negative and q_base * (1 + lam) below 1, the "
                f"largest probability of dropping, but got {q_base} and {lam}."
            )
        if not 0 <= p_exe <= 1 or warmup_epochs < 0:
            raise ValueError(
                "Expected `p_exe` in [0, 1] and `warmup_epochs` not negative, "
                f"but got {p_exe} and {warmup_epochs}."
            )
        self.heads = Heads(heads, head_optimizer)
        self.score, self.q_base, self.lam, self.p_exe = score, q_base, lam, p_exe
        self.warmup_epochs, self.seed = warmup_epochs, seed

    def prepare(self, binding: Binding) -> None:
        """Refuse a fusion that cannot be run again."""
        binding.require_decode("OPM")

    def loss(self, step: Step) -> Tensor:
        """Task loss, where it happens of a prediction without what is dropped."""
        drops = self._judge(step)
        draw = Random(f"{self.seed} {self.clock.steps}").random()
        warm = self.clock.current > self.warmup_epochs
        if self.q_base == 0 or len(drops) == 1 or not warm or draw >= self.p_exe:
            return step.loss
        widths = torch.tensor([self._width(step.features[n]) for n in self.binding.names])
        share = widths.to(drops, non_blocking=True)
        gain = 1 / (1 - (share * drops).sum() / share.sum())
        kept = self._kept(drops, len(step.prediction))
        features = {
            name: _times(gain, keep_samples(step.features[name], row))
            for name, row in zip(self.binding.names, kept, strict=True)
        }
        return self.task_loss(self.binding.decode(features), step.target)

    def _judge(self, step: Step) -> Tensor:
        """Probability of dropping each modality, ``(M,)``."""
        score = confidence_score(self.score, step.prediction, step.target)
        heads = self.judge(step, score)
        scores = ratio_score(self.window["counts"])
        ratios = confidence_ratios(scores)
        drops = drop_probabilities(ratios, self.q_base, self.lam)
        self.readings = {
            "score": scores,
            "ratio": ratios,
            "term": 1 - drops,
            "head_loss": heads.losses,
        }
        return drops

    def _width(self, features: Features) -> float:
        """Channels of what an encoder returns."""
        floats = [x for x in tensors_in(features) if x.is_floating_point() and x.ndim > 1]
        return float(sum(x.shape[channel_axis(x, self.binding)] for x in floats))

    def _kept(self, drops: Tensor, size: int) -> Tensor:
        """Which samples of this call keep which modality, bool, ``(M, B)``."""
        rank = dist.get_rank() if world_size() > 1 else 0
        draw = Random(f"{self.seed} {self.clock.steps} {rank} {self.micro_batches}")
        generator = torch.Generator(self.binding.device).manual_seed(draw.getrandbits(63))
        uniform = torch.rand(
            len(drops), size, generator=generator, device=drops.device, dtype=torch.float32
        )
        return uniform >= drops[:, None]


def drop_probabilities(ratios: Tensor, q_base: float, lam: float) -> Tensor:
    """Probabilities q of :class:`OPM` from ratios, both ``(M,)``; 0 where a ratio is undefined.

    Example:
        >>> drop_probabilities(torch.tensor([2.0, 0.5]), 0.5, 0.5)
        tensor([0.6904, 0.0000])
    """
    drops = q_base * (1 + lam * (ratios - 1).tanh())
    return torch.where(ratios > 1, drops, 0.0)


def _times(factor: Tensor, features: Features) -> Features:
    """Features of which every tensor of floats is multiplied by a scalar."""
    return map_tensors(lambda x: x * factor.to(x) if x.is_floating_point() else x, features)
