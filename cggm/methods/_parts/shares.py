"""Shares of modalities in a sample: its loss by each of them alone, and who explains it best."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cggm.scores import Window
from cggm.tensors import batch_size, kind_of, map_tensors, take_samples, tensors_in

_FEWEST = 3  # samples of which a mean over a window says something
_DECAY = 0.99  # of the means that take its place
_LITTLE, _MUCH = 0.1, 0.3  # negated correlations at which shares begin to count, and count in full
_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AttributeError)


class SampleLosses:
    """Task loss of each sample alone, for a task loss that averages over samples.

    The loss is called on batches of one sample, by ``torch.func.vmap``; where the loss does
    something that it cannot, such as asking a tensor for its value, from then on in a loop. A
    sample whose loss is not finite, such as one without any label, has the loss 0 and no gradient.

    Attributes:
        loops: Whether the loss has turned out to need a loop.
    """

    def __init__(self) -> None:
        self.loops = False

    def __call__(
        self,
        task_loss: Callable[[Any, Any], Tensor],
        prediction: Any,  # noqa: ANN401
        target: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Losses and whether they were finite, both ``(B,)``; losses are at least float32.

        Args:
            task_loss: ``(prediction, target)`` to a scalar.
            prediction: For the whole batch, ``(B, ...)``, or a container of such tensors.
            target: What it is compared with, for the whole batch.

        Raises:
            ValueError: If the loss cannot be had for one sample.
        """
        size, chosen = batch_size(prediction), _Chosen()
        prediction = map_tensors(lambda x: _chosen(x, chosen, size), prediction)
        losses = None if self.loops else _by_vmap(task_loss, prediction, target, size)
        if losses is None:
            self.loops = True
            losses = _by_loop(task_loss, prediction, target, size)
        losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
        chosen.samples = losses.detach().isfinite()
        return torch.where(chosen.samples, losses, 0.0), chosen.samples


class Guidance(nn.Module):
    """Trust in each modality, and means over samples where a window has too few of them.

    A window holds ``samples`` of each modality, the ``sizes`` of their losses and their ``parts``,
    sums of shape ``(M,)`` over micro-batches and ranks, and ``moments`` of pairs of losses.

    Args:
        modalities: Number of modalities.
        patience: Decay of trust.

    Attributes:
        trust: Starts at 1, ``(M,)``.
        parts: Running mean of the parts from zero, without bias correction, ``(M,)``.
        sizes: Running mean of the losses' sizes, likewise.
        steps: Steps that had samples of each modality, ``(M,)``.
        correlation: Running mean of the correlation of losses, likewise, and its number of steps.
    """

    trust: Tensor
    parts: Tensor
    sizes: Tensor
    steps: Tensor
    correlation: Tensor

    def __init__(self, modalities: int, patience: float) -> None:
        super().__init__()
        self.patience = patience
        self.register_buffer("trust", torch.ones(modalities))
        for name in ("parts", "sizes", "steps"):
            self.register_buffer(name, torch.zeros(modalities))
        self.register_buffer("correlation", torch.zeros(2))

    def trusted(self, gates: Tensor) -> Tensor:
        """Trust after a step with these gates, ``(M,)``: it rises at once and falls slowly."""
        return torch.maximum(gates, torch.lerp(gates, self.trust, self.patience))

    def typical_parts(self, window: Window) -> Tensor:
        """Mean part of each modality, ``(M,)``."""
        return self._typical(self.parts, window["parts"], window["samples"])

    def typical_size(self, window: Window) -> Tensor:
        """Mean size of a loss, over modalities, a positive scalar."""
        counts = window["samples"]
        sizes = self._typical(self.sizes, window["sizes"], counts)
        mean = (sizes * counts).sum() / counts.sum().clamp_min(1)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny)

    def opposition(self, window: Window) -> Tensor:
        """How far shares count by the correlation of losses over samples, in [0, 1], a scalar.

        None above -0.1, in full below -0.3; in full where no window had three samples.
        """
        mean, steps = self._correlated(window)
        found = mean / (1 - _DECAY ** steps.clamp_min(1))
        strength = ((-found - _LITTLE) / (_MUCH - _LITTLE)).clamp(0, 1)
        return torch.where(steps > 0, strength, 1.0)

    def commit(self, window: Window, gates: Tensor) -> None:
        """Move the state by the window."""
        self.trust.copy_(torch.where(window["seen"] > 0, self.trusted(gates), self.trust))
        if "parts" in window:
            counts = window["samples"]
            for mean, name in ((self.parts, "parts"), (self.sizes, "sizes")):
                mean.copy_(_moved(mean, window[name], counts))
            self.steps += counts > 0
            self.correlation.copy_(self._correlated(window))

    def _correlated(self, window: Window) -> Tensor:
        """Running mean of the correlation with the window's, and steps, ``(2,)``."""
        found = mean_correlation(window["moments"])
        mean, steps = self.correlation
        moved = torch.stack([torch.lerp(found, mean, _DECAY), steps + 1])
        return torch.where(found.isfinite(), moved, self.correlation)

    def _typical(self, running: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        mean = sums / counts.clamp_min(1)
        steps = self.steps + (counts > 0)
        corrected = _moved(running, sums, counts) / (1 - _DECAY ** steps.clamp_min(1))
        return torch.where(counts >= _FEWEST, mean, corrected)


def _moved(running: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    return torch.where(counts > 0, torch.lerp(sums / counts.clamp_min(1), running, _DECAY), running)


def pair_moments(losses: Tensor, seen: Tensor) -> Tensor:
    """Sums that the correlations of pairs of modalities are made of, which add up over batches.

    Args:
        losses: Loss of each sample by each modality, ``(B, M)``.
        seen: Which samples have which modality, bool, ``(B, M)``.

    Returns:
        Samples that have both i and k, and the sums of l_i, of its square and of l_i l_k over
        them, ``(4, M, M)``.
    """
    there = seen.to(losses.dtype)
    values = losses * there
    with torch.autocast(losses.device.type, enabled=False):  # half precision counts to 256
        return torch.stack(
            [there.T @ there, values.T @ there, (values**2).T @ there, values.T @ values]
        )


def mean_correlation(moments: Tensor) -> Tensor:
    """Mean correlation over pairs that have three samples, from :func:`pair_moments`; NaN if none.

    Example:
        >>> losses = torch.tensor([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
        >>> mean_correlation(pair_moments(losses, torch.ones(3, 2, dtype=torch.bool)))
        tensor(-1.)
    """
    counts, sums, squares, products = moments.double()
    counts = counts.clamp_min(1)
    means = sums / counts
    spreads = (squares / counts - means**2).clamp_min(0).sqrt()
    widths = spreads * spreads.T
    known = (moments[0] >= _FEWEST) & (widths > 0)
    known = known.triu(1)
    found = (products / counts - means * means.T) / torch.where(known, widths, 1.0)
    mean: Tensor = torch.where(known, found, 0.0).sum() / known.sum()
    return mean.to(moments.dtype)


def explained_parts(losses: Tensor, seen: Tensor, temperature: Tensor | float) -> Tensor:
    r"""How much of each sample each modality explains, compared with the others that it has.

    .. math:: p_{bi} = \frac{e^{-l_{bi} / T}}{\sum_{k \in S_b} e^{-l_{bk} / T}}

    Args:
        losses: Loss of each sample by each modality alone, ``(B, M)``, lower is better.
        seen: The set S, bool, ``(B, M)``: what the sample has.
        temperature: T, positive.

    Returns:
        Shape ``(B, M)``, adding up to 1 over what a sample has; 0 elsewhere.

    Example:
        >>> losses = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        >>> explained_parts(losses, torch.ones(2, 2, dtype=torch.bool), 1.0)
        tensor([[0.7311, 0.2689],
                [0.5000, 0.5000]])
    """
    logits = torch.where(seen, -losses / temperature, -torch.inf)
    return logits.softmax(1).nan_to_num(0.0)


def mean_of_seen(values: Tensor, seen: Tensor) -> Tensor:
    """Mean over the samples that have each modality, ``(B, M)`` to ``(M,)``; 0 where none has."""
    return torch.where(seen, values, 0.0).sum(0) / seen.sum(0).clamp_min(1)


def shuffled_rows(shares: Tensor, seen: Tensor, generator: torch.Generator) -> Tensor:
    """Rows dealt out to other samples, of each modality to those that have it, ``(B, M)``.

    Args:
        shares: Shape ``(B, M)``.
        seen: Which samples have which modality, bool, ``(B, M)``.
        generator: Draws the order, on the processor.
    """
    drawn = torch.rand(len(shares), 1, generator=generator).to(shares.device)
    # in both orders, samples that have the modality come first
    given = (drawn + ~seen).argsort(0)
    taken = (~seen).to(torch.uint8).argsort(stable=True, dim=0)
    return torch.empty_like(shares).scatter(0, taken, shares.gather(0, given))


class _Chosen:
    """Samples that get a gradient, known once their losses are."""

    samples: Tensor


class _OnlyChosen(torch.autograd.Function):
    """Identity whose backward passes the gradient of chosen samples alone."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, chosen: _Chosen) -> Tensor:  # noqa: ANN401
        ctx.chosen = chosen
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        kept = ctx.chosen.samples.reshape(-1, *[1] * (gradient.ndim - 1))
        return torch.where(kept, gradient, torch.zeros_like(gradient)), None


def _chosen(tensor: Tensor, chosen: _Chosen, size: int) -> Tensor:
    if not tensor.requires_grad or not tensor.ndim or len(tensor) != size:
        return tensor
    found: Tensor = _OnlyChosen.apply(tensor, chosen)
    return found


def _by_vmap(
    task_loss: Callable[[Any, Any], Tensor],
    prediction: Any,  # noqa: ANN401
    target: Any,  # noqa: ANN401
    size: int,
) -> Tensor | None:
    """Losses, ``(B,)``; ``None`` where vmap cannot have them."""
    if not (_stacked(prediction, size) and _stacked(target, size)):
        return None

    def of_one(own: Any, wanted: Any) -> Tensor:  # noqa: ANN401
        loss = task_loss(*(map_tensors(lambda x: x[None], value) for value in (own, wanted)))
        return loss.reshape(())

    try:
        return torch.func.vmap(of_one, randomness="different")(prediction, target)
    except _REFUSALS:
        return None


def _by_loop(
    task_loss: Callable[[Any, Any], Tensor],
    prediction: Any,  # noqa: ANN401
    target: Any,  # noqa: ANN401
    size: int,
) -> Tensor:
    losses = []
    for row in range(size):
        try:
            found = task_loss(*(take_samples(v, [row], size) for v in (prediction, target)))
        except _REFUSALS as error:
            raise ValueError(_REFUSED.format(what=f"it fails: {error}")) from error
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ValueError(_REFUSED.format(what=f"it returns {kind_of(found)}"))
        losses.append(found.reshape(()))
    return torch.stack(losses)


_REFUSED = (
    "Expected a task loss that can be had for each sample alone, because modalities are compared "
    "sample by sample, but for a batch of one sample {what}. Use a loss that is a mean over "
    "samples, or another method, such as UnimodalLosses."
)


def _stacked(value: Any, size: int) -> bool:  # noqa: ANN401
    """Whether a value is a tensor with one row per sample, or a mapping of such tensors."""
    if not isinstance(value, Tensor | Mapping):
        return False
    if isinstance(value, Mapping) and type(value) is not dict:
        return False
    tensors = [*tensors_in(value)]
    whole = isinstance(value, Tensor) or len(tensors) == len(value)
    return whole and bool(tensors) and all(t.ndim and len(t) == size for t in tensors)
