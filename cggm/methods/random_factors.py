"""Random factors for the encoders: the control of methods whose factors follow a measurement."""

from collections.abc import Mapping, Sequence
from random import Random

import torch
from torch import Tensor

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.functional import balancing_terms
from cggm.heads import Criterion
from cggm.methods._parts import check_columns, check_names
from cggm.passes import Step

_TARGETS = ("gradient", "update")


class RandomFactors(Balancer):
    r"""Encoders are scaled by factors drawn at each optimizer step: a control, of no paper.

    .. math:: \tilde g_i = b_{r i} g_i, \quad r \sim \mathrm{Uniform}\{1, \dots, R\}

    with :math:`b` the R recorded terms of a run of CGGM, one row per step. A row is drawn with
    replacement for all modalities at once, so that each modality's distribution and the relation
    between modalities stay and the order in time goes; with ``permuted`` the row is dealt out to
    the modalities anew at each step, so that which modality it belonged to goes too. What CGGM
    gains over this control is owed to what its terms measure, and not to their spread.

    Without recorded terms, factors are equation (7) on gains that are noise, drawn from an
    exponential distribution: they lie in [0, 1] and add up to M - 1.

    A draw is a function of the seed and the number of optimizer steps made: alike on all ranks,
    alike within an accumulation window, and alike after a resume. No other generator is touched.

    Not a method to train with. Serves any task and any number of modalities.
    ``terms=[1.0]`` is joint training.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        terms: Modality name to its recorded terms, one per step, as many for each; or one list
            from which each modality draws on its own; or ``None`` for noise.
        permuted: Whether a row is dealt out anew; needs terms by modality.
        seed: Seed of the draws.
        acts_on: ``"gradient"``, or ``"update"`` to scale the step that the optimizer takes.

    Raises:
        ValueError: If an argument is out of range, or, in ``bind``, if ``terms`` names other
            modalities than the encoders.
    """

    serves_absence = True

    def __init__(
        self,
        task_loss: Criterion,
        *,
        terms: Mapping[str, Sequence[float]] | Sequence[float] | None = None,
        permuted: bool = False,
        seed: int = 0,
        acts_on: str = "gradient",
    ) -> None:
        super().__init__(task_loss)
        if acts_on not in _TARGETS:
            raise ValueError(f"Expected `acts_on` to be one of {_TARGETS}, but got {acts_on!r}.")
        if permuted and not isinstance(terms, Mapping):
            raise ValueError("Expected `terms` by modality where `permuted`, but got none.")
        if terms is not None:
            columns = list(terms.values()) if isinstance(terms, Mapping) else [terms]
            check_columns("terms", columns)
        self.terms = terms
        self.permuted = permuted
        self.seed = seed
        self.acts_on = acts_on
        self._neutral = not isinstance(terms, Mapping) and set(terms or ()) == {1.0}

    def prepare(self, binding: Binding) -> None:
        """Refuse terms of other modalities."""
        if isinstance(self.terms, Mapping):
            check_names("terms", list(self.terms), binding.names)

    def loss(self, step: Step) -> Tensor:
        """Task loss."""
        factors = self._draw(self.binding.names)
        self.readings = {"term": factors.to(self.binding.device, non_blocking=True)}
        return step.loss

    def scales(self, step: Step) -> Tensor | None:
        """The factors, where they act on gradients."""
        acts = self.acts_on == "gradient" and not self._neutral
        return self.readings["term"] if acts else None

    def update_scales(self, step: Step) -> Tensor | None:
        """The factors, where they act on the optimizer's step."""
        acts = self.acts_on == "update" and not self._neutral
        return self.readings["term"] if acts else None

    def _draw(self, names: Sequence[str]) -> Tensor:
        generator = Random(f"{self.seed} {self.clock.steps}")
        if self.terms is None:
            return balancing_terms(torch.tensor([generator.expovariate(1) for _ in names]))
        if not isinstance(self.terms, Mapping):
            return torch.tensor([float(generator.choice(self.terms)) for _ in names])
        index = generator.randrange(len(self.terms[names[0]]))
        row = [float(self.terms[name][index]) for name in names]
        if self.permuted:
            generator.shuffle(row)
        return torch.tensor(row)
