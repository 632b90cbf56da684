"""Guided heads: heads that judge modalities say which sample an encoder should learn from."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, cast

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.distributed import rank, sum_over_ranks, world_size
from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.methods._parts import (
    Guidance,
    Numbers,
    SampleLosses,
    check_columns,
    check_factors,
    check_names,
    explained_parts,
    mean_of_seen,
    pair_moments,
    per_modality,
    shuffled_rows,
)
from cggm.passes import Step
from cggm.scores import Score, SignalTracker, score_counts, with_chance
from cggm.tensors import batch_size, keep_samples, map_tensors, samples_with, tensors_in

_SHARES = ("auto", "live", "shuffled", None)
_GATES = ("auto", "signal", "loss", None)
_TEMPERATURES = ("auto", "mean")
_SWITCHES = ("auto", "correlation", None)
_HOT = 3.0  # of the mean loss: temperature of losses that are no log-likelihoods
_TRUSTED = 3.0  # a modality is trusted in full down to a third of the best one's signal
_DENSE = (
    "GuidedHeads is bound to a dense task: one of places, such as segmentation, where no form of "
    "shares that was tried did better than none (docs/results.md). {does}"
)
_PLAIN = "It trains without them: by default with equal weights and an even extra pass."
_TRIED = '`shares="auto"`, the default, leaves them out.'

Recorded = Numbers | Mapping[str, Sequence[float]]
"""One weight for all modalities, one for each, or what a run recorded of each, one per step."""


class GuidedHeads(Balancer):
    r"""Heads judge modalities sample by sample, and encoders learn from what theirs explains. Ours.

    The paper's classifiers and its question, what each modality tells, without its ratio: not how
    fast a modality improves, but *which samples* it explains. With :math:`l_{bi}` the loss of head
    i on sample b, of M modalities,

    .. math:: p_{bi} = \frac{e^{-l_{bi} / T}}{\sum_k e^{-l_{bk} / T}}, \quad
              r_{bi} = 1 + g_i \left( \min\left(M, \frac{p_{bi}}{\mathrm{mean}_b\, p_{bi}}\right)
              - 1 \right)

        L = L_{task} + \mu \sum_i w_i \, \mathrm{mean}_b (r_{bi} l_{bi}) +
        \nu \left( \sum_i w_i \right) L_{task}(F(0, \dots, h_{m(b)}, \dots, 0), y)

    where the heads' parameters are constants and the loss reaches the encoders. The last term is
    one more pass through the fusion, in which sample b keeps one modality, drawn with
    :math:`P(m(b) = i) \propto w_i r_{bi}`. Who is behind counts more:

    .. math:: w_i = \min(1, 3 u_i) \, \frac{1 + B_i}{2}, \quad
              B_i = \frac{M}{M - 1} \left( 1 - \frac{g_i}{\sum_k g_k} \right), \quad
              u_i \leftarrow \max(g_i, q u_i + (1 - q) g_i)

    Of classes, the distance of r from 1 is multiplied by
    :math:`\kappa = \mathrm{clip}((-\rho - 0.1) / 0.2, 0, 1)`, with :math:`\rho` the moving average
    of the correlation of the heads' losses over samples. Where losses do not oppose each other,
    shares of classes are noise and cost accuracy; losses of values are always correlated.

    g is the gate of :class:`cggm.CGGM`, a head's signal above chance as a share of the best one's,
    u the trust in a modality, which starts at 1 and runs out where its head never finds a signal,
    q the ``patience``. Heads learn as in CGGM: from detached features, by their own optimizer.

    In a sample that lacks modalities those that are there compete, p counts in units of
    one over their number, and one of them is kept in the extra pass. Where an encoder did not run
    because the whole batch lacks its modality, the extra pass is left out. With fewer than three
    samples of a modality in the window, running means take the place of the mean over the batch; a
    single sample without spatial axes tells nothing of chance, so that the gate is open there.

    A network of late fusion predicts from each modality itself: its own heads, which learn along,
    take the place of ``heads``, which are dropped.

    Means are taken over the window so far and over all ranks, so that coefficients are alike. What
    is kept in the extra pass is drawn by seed, rank, optimizer steps and micro-batch: two ranks, or
    two micro-batches, equal the whole batch in expectation.

    In dense prediction, of one value at each place, no form of shares did better than none
    (``docs/results.md``), and a score such as Dice stays at chance while all heads predict the
    background, until trust has run out. By default there are neither shares nor gates there:
    weights are 1, losses are those of whole batches, and the extra pass draws a modality evenly;
    simulated, that gained where a modality was missing and cost where none was.
    ``gate="loss"`` has weights by who is behind, by a head's loss on the next sample's target less
    that on its own, and trust in all. Where shares are asked for, a loss of a whole batch, such as
    Dice, is taken image by image.

    Use it where modalities carry the label in different samples, or one may be missing at test; see
    ``docs/which_method.md``. Do not use it where a loss compares the samples of a batch with each
    other. Costs two passes through the heads and one more through the fusion.

    Controls are settings: ``shares="shuffled"`` deals the shares of a modality out to other
    samples, ``shares=None`` has none, and ``factors`` takes the place of the weights.
    ``mu=0, nu=0`` is joint training; heads still learn and report.

    Args:
        heads: Modality name to head, same names and order as the encoders; each takes what its
            encoder returns and ends in an attribute ``output_layer`` of the network's shape.
        task_loss: ``(prediction, target)`` to a scalar, a mean over samples; for the network and
            for every head.
        score: ``(prediction, target)``, see :func:`cggm.scores.score_counts`; moves the gate.
        mu: Weight of the heads' losses, not negative.
        nu: Weight of the extra pass, not negative; 0 does without it and without ``decode``.
        shares: ``"live"``, ``"shuffled"`` over the batch, or ``None`` for 1; ``"auto"`` is live
            where a sample has one prediction, and none where it has one at each place.
        gate: ``"signal"``, of the score above chance; ``"loss"``, of the loss below chance, with
            trust in all; ``None`` for modalities that are all trusted alike. ``"auto"`` is the
            first, and none where a sample has a prediction at each place.
        temperature: T. ``"auto"`` is 1 where targets are class indices, so that losses are
            negative log-likelihoods, and ``"mean"`` elsewhere: three times the mean size of the
            losses.
        switch: ``"auto"`` has :math:`\kappa` where targets are class indices, ``"correlation"``
            everywhere; ``None`` is 1.
        patience: q, in [0, 1].
        factors: ``None`` for the weights w. One number, or modality name to number, holds them
            constant; modality name to a list, as a run has recorded them, one per step, draws one
            row of them at each step.
        seed: Seed of the draws; the same on all ranks.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Attributes:
        guidance: Trust and running means, the state beside heads and scores.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if ``factors`` names other
            modalities, or if the network has no ``decode`` and ``nu`` is not 0; in the first call,
            if the loss cannot be had for one sample.
    """

    serves_absence = True
    serves_late_fusion = True
    trains_through_heads = True
    heads: Heads | None
    scores: SignalTracker

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        task_loss: Criterion,
        score: Score,
        *,
        mu: float = 1.0,
        nu: float = 0.25,
        shares: str | None = "auto",
        gate: str | None = "auto",
        temperature: float | str = "auto",
        switch: str | None = "auto",
        patience: float = 0.99,
        factors: Recorded | None = None,
        seed: int = 0,
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        for argument, value in (("mu", mu), ("nu", nu)):
            check_factors(argument, value)
        _check_choices(shares, gate, switch, temperature, patience)
        self._rows: dict[str, Sequence[float]] = {}
        self._constant: Numbers | None = None
        if isinstance(factors, Mapping) and any(isinstance(v, Sequence) for v in factors.values()):
            self._rows = {n: v if isinstance(v, Sequence) else [v] for n, v in factors.items()}
            check_columns("factors", list(self._rows.values()))
        elif factors is not None:
            self._constant = cast(Numbers, factors)
            check_factors("factors", self._constant)
        self.heads = Heads(heads, head_optimizer)
        self.score = with_chance(score)
        self.scores = SignalTracker(len(heads))
        self.guidance = Guidance(len(heads), patience)
        self.mu, self.nu, self.shares, self.gate = mu, nu, shares, gate
        self.temperature, self.factors, self.seed = temperature, factors, seed
        self.switch = switch
        self._losses_of = SampleLosses()
        self._dense = False

    def prepare(self, binding: Binding) -> None:
        """Refuse a fusion that cannot be run again where it is to be, and other modalities."""
        if self.nu > 0:
            binding.require_decode("GuidedHeads, unless `nu` is 0,")
        if isinstance(self.factors, Mapping):
            check_names("factors", list(self.factors), binding.names)
        if self.heads is None and not binding.late_fusion:
            raise ValueError(
                "Expected heads for a network that fuses features, but this balancer gave its own "
                "away when it was bound to one of late fusion. Make a new balancer."
            )

    def loss(self, step: Step) -> Tensor:
        """Task loss, the heads' weighted losses, and that of the extra pass."""
        self._dense = any(tensor.ndim > 2 for tensor in tensors_in(step.prediction))
        head_losses, ranked = self._let_judge(step)
        gates = self._gates()
        trust = self.guidance.trusted(gates)
        if self._gate == "loss":  # it finds a signal long before a score does
            trust = torch.ones_like(trust)
        weights = self._weights(gates, trust)
        self.readings = {"score": self.scores.scores(self.window), "head_loss": head_losses}
        self.readings |= {"gate": gates, "trust": trust, "weight": weights}
        if self.mu == 0 and self.nu == 0:
            return step.loss
        if self._dense:
            self._warn(_DENSE.format(does=_TRIED if self._shown else _PLAIN))
            if self._shown is None and self.heads is not None:
                return self._unguided(step, weights, ranked)
        with torch.set_grad_enabled(self.mu > 0):
            losses, seen = self._losses(step)
        counts = self._count(losses.detach(), seen)
        shares = self._shares(losses.detach(), seen, gates, step.target)
        total = step.loss
        if self.mu > 0:
            means = (shares * losses).sum(0) * world_size() / counts.clamp_min(1)
            total = total + self.mu * (weights * means).sum()
        if self.nu > 0 and len(step.features) == len(gates):
            kept = self._kept(weights * shares, step)
            total = total + self.nu * weights.sum() * self._loss_of_kept(step, kept)
        return total

    def _unguided(self, step: Step, weights: Tensor, ranked: Tensor) -> Tensor:
        """The loss without shares, of whole batches, which a Dice of all images can have."""
        total = step.loss
        if self.mu > 0:
            losses = self.heads.losses(step.features, step.target, self.task_loss, step.presence)  # type: ignore[union-attr]
            total = total + self.mu * (weights * ranked * losses).sum()
        if self.nu > 0 and len(step.features) == len(weights):
            kept = self._kept(weights.expand(batch_size(step.prediction), -1), step)
            total = total + self.nu * weights.sum() * self._loss_of_kept(step, kept)
        return total

    def commit(self) -> None:
        """Move trust and running means by the window."""
        self.guidance.commit(self.window, self._gates())

    def _let_judge(self, step: Step) -> tuple[Tensor, Tensor]:
        """Loss of each head without a graph, and its weight among ranks; adds their counts."""
        size = batch_size(step.prediction)
        tells = size > 1 or any(tensor.ndim > 1 for tensor in tensors_in(step.target))
        self.window.gather(tells=torch.tensor(float(tells), device=step.loss.device))
        if self.heads is not None:
            judged = self.judge(step, self._judged_by)
            return judged.losses, judged.weights
        found = {}
        with torch.no_grad():
            for name, prediction, wanted in self._alone(step):
                said = map_tensors(torch.Tensor.detach, prediction)
                loss = self.task_loss(said, wanted).detach().float()
                found[name] = (loss, score_counts(self._judged_by, said, wanted))
        lost, empty = torch.full_like(step.loss, torch.nan), next(iter(found.values()))[1] * 0
        rows = [found.get(name, (lost.float(), empty)) for name in self.binding.names]
        losses, counts = (torch.stack(column) for column in zip(*rows, strict=True))
        seen = [1.0 if step.presence is None else step.presence.share(n) for n in step.unimodal]
        self.window.gather(counts=counts, seen=torch.tensor(seen).to(losses.device))
        return losses, torch.ones_like(losses)

    def _alone(self, step: Step) -> Iterator[tuple[str, Any, Any]]:
        """Name, prediction and target of each modality alone, of the samples that have it."""
        for name in self.binding.names:
            if step.presence is not None and name in step.presence.absent:
                continue
            source = step.features if self.heads is not None else step.unimodal
            own, wanted = samples_with(source[name], step.target, name, step.presence)
            yield name, own if self.heads is None else self.heads.alone(name, own), wanted

    def _losses(self, step: Step) -> tuple[Tensor, Tensor]:
        """Loss of each sample by each modality, 0 where there is none, and whether there is."""
        size, names = batch_size(step.prediction), self.binding.names
        device = step.loss.device
        columns = {n: (torch.zeros(size, device=device),) * 2 for n in names}
        for name, prediction, wanted in self._alone(step):
            losses, finite = self._losses_of(self.task_loss, prediction, wanted)
            rows = None if step.presence is None else step.presence.rows(name)
            if rows is not None:
                index = torch.tensor(rows).to(device, non_blocking=True)
                losses = losses.new_zeros(size).index_copy(0, index, losses)
                finite = finite.new_zeros(size).index_copy(0, index, finite)
            columns[name] = (losses, finite)
        losses, seen = (torch.stack(c, 1) for c in zip(*columns.values(), strict=True))
        return losses, seen > 0

    def _count(self, losses: Tensor, seen: Tensor) -> Tensor:
        """Samples of each modality in the micro-batch, over all ranks, ``(M,)``."""
        found = {
            "samples": seen.sum(0).float(),
            "sizes": losses.abs().sum(0),
            "moments": pair_moments(losses, seen),
        }
        for name, total in zip(found, sum_over_ranks([*found.values()]), strict=True):
            found[name] = total
            self.window.add(name, total)
        return found["samples"]

    def _shares(self, losses: Tensor, seen: Tensor, gates: Tensor, target: Any) -> Tensor:  # noqa: ANN401
        """Shares r, ``(B, M)``, 0 where a sample lacks the modality."""
        temperature = self._temperature(target)
        parts = explained_parts(losses, seen, temperature)
        relative = parts * seen.sum(1, keepdim=True)
        self.window.gather(parts=relative.sum(0))
        shares = (relative / self.guidance.typical_parts(self.window)).clamp_max(len(gates))
        strength = gates * self._strength(target)
        shares = torch.where(seen, 1 + strength * (shares - 1), 0.0)
        several = seen.sum(1) > 1
        # not one_hot, which looks at its values on a processor
        first = torch.eye(len(gates), dtype=torch.float32, device=parts.device)[parts.argmax(1)]
        self.readings |= {
            "strength": strength,
            "share": mean_of_seen(parts, seen),
            "lead": mean_of_seen(first, several[:, None]),
            "spread": mean_of_seen((shares - mean_of_seen(shares, seen)) ** 2, seen).sqrt(),
        }
        if self._shown == "live":
            return shares
        return (
            seen.float()
            if self._shown is None
            else shuffled_rows(shares, seen, self._draws("order"))
        )

    def _temperature(self, target: Any) -> Tensor | float:  # noqa: ANN401
        if not isinstance(self.temperature, str):
            return self.temperature
        if self.temperature == "auto" and _are_classes(target):
            return 1.0
        return _HOT * self.guidance.typical_size(self.window)

    def _strength(self, target: Any) -> Tensor | float:  # noqa: ANN401
        if self.switch is None or (self.switch == "auto" and not _are_classes(target)):
            return 1.0
        return self.guidance.opposition(self.window)

    @property
    def _shown(self) -> str | None:
        """The shares that are in use."""
        return (None if self._dense else "live") if self.shares == "auto" else self.shares

    @property
    def _gate(self) -> str | None:
        """The gate that is in use."""
        return (None if self._dense else "signal") if self.gate == "auto" else self.gate

    @property
    def _judged_by(self) -> Score:
        return with_chance(self._negated_loss) if self._gate == "loss" else self.score

    def _negated_loss(self, prediction: Any, target: Any) -> Tensor:  # noqa: ANN401
        with torch.no_grad():
            return -self.task_loss(prediction, target)

    def _gates(self) -> Tensor:
        """Trust in each modality by its head's signal, ``(M,)``; open where nothing tells."""
        gates = self.scores.gates(self.window)
        if self._gate is None:
            return torch.ones_like(gates)
        return torch.where(self.window["tells"] > 0, gates, 1.0)

    def _weights(self, gates: Tensor, trust: Tensor) -> Tensor:
        """Weights w, ``(M,)``, or what takes their place."""
        names, factors = self.binding.names, self._constant
        if self._rows:
            count = len(self._rows[names[0]])
            row = Random(f"{self.seed} {self.clock.steps}").randrange(count)
            factors = {name: self._rows[name][row] for name in names}
        if factors is None:
            return guided_weights(gates, trust)
        return per_modality("factors", factors, names).to(gates.device, non_blocking=True)

    def _draws(self, what: str) -> torch.Generator:
        """A generator on the processor, by what it draws, seed, step, micro-batch and rank."""
        key = f"{what} {self.seed} {self.clock.steps} {self.micro_batches} {rank()}"
        return torch.Generator().manual_seed(Random(key).getrandbits(63))

    def _kept(self, chances: Tensor, step: Step) -> Tensor:
        """Which modality each sample keeps, bool, ``(B, M)``, in proportion to its chances."""
        there = torch.ones_like(chances)
        if step.presence is not None:
            there = step.presence.matrix().to(chances, non_blocking=True)
        chances = chances * there
        chances = torch.where(chances.sum(1, keepdim=True) > 0, chances, there)
        drawn = torch.rand(len(chances), 1, generator=self._draws("kept")).to(chances.device)
        below = chances.cumsum(1) / chances.sum(1, keepdim=True)
        chosen = (below[:, :-1] <= drawn).sum(1)  # rounded, the last sum may be less than 1
        return torch.eye(chances.shape[1], dtype=torch.bool, device=chances.device)[chosen]

    def _loss_of_kept(self, step: Step, kept: Tensor) -> Tensor:
        columns = zip(step.features.items(), kept.unbind(1), strict=True)
        features = {name: keep_samples(own, column) for (name, own), column in columns}
        return self.task_loss(self.binding.decode(features), step.target)


def _are_classes(target: Any) -> bool:  # noqa: ANN401
    """Whether targets are class indices."""
    whole = isinstance(target, Tensor) and not target.is_floating_point()
    return whole and target.dtype != torch.bool


def guided_weights(gates: Tensor, trust: Tensor) -> Tensor:
    """Weights w of :class:`GuidedHeads` from gates and trust, all of shape ``(M,)``.

    Example:
        >>> guided_weights(torch.tensor([1.0, 0.25, 0.0]), torch.tensor([1.0, 0.25, 0.1]))
        tensor([0.6500, 0.8250, 0.3750])
    """
    count, total = len(gates), gates.sum()
    own = torch.where(total > 0, gates / torch.where(total > 0, total, 1.0), 1 / count)
    behind = (1 - own) * count / max(count - 1, 1) if count > 1 else torch.ones_like(own)
    return (_TRUSTED * trust).clamp_max(1) * (1 + behind) / 2


def _check_choices(
    shares: str | None,
    gate: str | None,
    switch: str | None,
    temperature: float | str,
    patience: float,
) -> None:
    given = (("shares", shares, _SHARES), ("gate", gate, _GATES), ("switch", switch, _SWITCHES))
    for name, value, choices in given:
        if value not in choices:
            raise ValueError(f"Expected `{name}` to be one of {list(choices)}, but got {value!r}.")
    known = temperature in _TEMPERATURES if isinstance(temperature, str) else temperature > 0
    if not known:
        raise ValueError(
            f"Expected `temperature` positive or one of {list(_TEMPERATURES)}, "
            f"but got {temperature!r}."
        )
    if not 0 <= patience <= 1:
        raise ValueError(f"Expected `patience` in [0, 1], but got {patience}.")
