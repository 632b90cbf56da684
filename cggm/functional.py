"""The formulas of CGGM (Guo et al., NeurIPS 2024): tensors in, tensors out.

Shapes: ``M`` modalities, ``B`` batch, ``C`` classes or outputs, ``D`` width of the last layer's
input, ``*S`` any spatial shape.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Keeps half-precision gradients of a mean over many voxels out of the subnormal range.
_HALF_SCALE = 1024.0

# Gains whose sum is below this share of their sizes cancel: what is left of the sum is rounding. Of
# float32 scores of B samples it is up to some 1e-6; a true sum is at least 1 / (B M) of the sizes.
_CANCELS = 1e-5

# Nodes that PyTorch puts into a graph where a formula is not implemented, or forbidden.
_WITHOUT_DERIVATIVE = ("NotImplemented", "Error", "DelayedError")


def _raw(gains: Tensor) -> Tensor:
    return 1 - gains / gains.sum()


def _released(gains: Tensor) -> Tensor:
    return 1 - gains / (gains.sum() + 1e-8)


def _abs(gains: Tensor) -> Tensor:
    return 1 - gains / gains.abs().sum()


def _relu(gains: Tensor) -> Tensor:
    return 1 - gains.relu() / gains.relu().sum()


def _softmax(gains: Tensor) -> Tensor:
    return (gains.numel() - 1) * torch.softmax(-gains / gains.abs().mean(), dim=0)


TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": _raw,
    "released": _released,
    "abs": _abs,
    "relu": _relu,
    "softmax": _softmax,
}


def balancing_terms(gains: Tensor, rho: float = 1.0, kind: str = "abs") -> Tensor:
    r"""Balancing terms of CGGM, equation (7).

    .. math:: B_i = \rho \frac{\sum_{k \neq i} \Delta\varepsilon_k}{\sum_k \Delta\varepsilon_k}

    The modality that improved most gets the smallest term. The ratio is singular where the gains
    cancel and reverses its meaning where their sum is negative, hence four other kinds, which
    equal it when all gains are positive except for ``softmax``:

    ============ ================================================ ====================
    kind         :math:`B_i / \rho`                               range
    ============ ================================================ ====================
    ``raw``      :math:`1 - d_i / \sum_k d_k`, the paper          unbounded
    ``released`` ``raw`` with 1e-8 added to the sum               unbounded
    ``abs``      :math:`1 - d_i / \sum_k |d_k|`                   [0, 2]
    ``relu``     :math:`1 - d_i^+ / \sum_k d_k^+`                 [0, 1]
    ``softmax``  :math:`(M-1)\,\mathrm{softmax}(-d / \bar{|d|})`  (0, M - 1)
    ============ ================================================ ====================

    Where a term is undefined (no gain at all, a gain that is not finite) every modality gets the
    neutral term :math:`\rho (M-1)/M`, the value at equal gains. So it does under ``raw``
    where gains cancel, :math:`|\sum_k d_k| \le 10^{-5} \sum_k |d_k|`: whether the sum is then zero,
    and which sign it has, is a matter of rounding, and a term could be anything. A single modality
    has nothing to be balanced against: its term is 1. Terms lower the encoders' learning rate by
    (M-1)/M on average; ``rho = M/(M-1)`` undoes that.

    Args:
        gains: Change of each head's score, higher is better, shape ``(M,)``.
        rho: Scale of the terms, positive.
        kind: One of the kinds above.

    Returns:
        One factor per encoder, shape ``(M,)``, always finite.

    Raises:
        ValueError: If ``kind`` is unknown.

    Example:
        >>> balancing_terms(torch.tensor([0.30, 0.10, 0.10]), rho=1.2)
        tensor([0.4800, 0.9600, 0.9600])
    """
    if kind not in TERMS:
        raise ValueError(f"Expected `kind` to be one of {sorted(TERMS)}, but got {kind!r}.")
    count = gains.numel()
    if count == 1:
        return torch.ones_like(gains)
    terms = rho * TERMS[kind](gains)
    defined = torch.isfinite(terms).all()
    if kind == "raw":
        defined &= gains.sum().abs() > _CANCELS * gains.abs().sum()
    return torch.where(defined, terms, rho * (count - 1) / count)


def signal_gates(signal: Tensor) -> Tensor:
    r"""How far each modality is above chance, as a share of the one that is furthest.

    .. math:: w_i = \max(0, s_i) / \max_k s_k

    Args:
        signal: Score less the score of chance, higher is better, shape ``(M,)``.

    Returns:
        Shares in [0, 1], shape ``(M,)``; 0 for all where none is above chance.

    Example:
        >>> signal_gates(torch.tensor([0.4, 0.1, -0.2]))
        tensor([1.0000, 0.2500, 0.0000])
    """
    above = torch.where(signal > 0, signal, 0.0)
    best = above.max()
    return torch.where(best > 0, above / torch.where(best > 0, best, 1.0), 0.0)


def gated_terms(gains: Tensor, gates: Tensor, rho: float = 1.0, kind: str = "abs") -> Tensor:
    r"""Balancing terms between those modalities that carry a signal. Ours, not in the paper.

    .. math:: B_i = c + w_i \max_{k \neq i} w_k \, (B_i(w \Delta\varepsilon) - c), \quad
        c = \rho (M - 1) / M

    A gain counts by its gate, and a term leaves the neutral one only as far as both the modality
    and another one carry a signal: there must be two for one to be ahead.

    Args:
        gains: Change of each head's score, higher is better, shape ``(M,)``.
        gates: Trust in each modality in [0, 1], shape ``(M,)``.
        rho: Scale of the terms, positive.
        kind: See :func:`balancing_terms`.

    Returns:
        One factor per encoder, shape ``(M,)``; those of ``balancing_terms`` where all gates are 1.
    """
    count = gains.numel()
    if count == 1:
        return torch.ones_like(gains)
    best, second = gates.topk(2).values
    other = torch.where(torch.arange(count, device=gates.device) == gates.argmax(), second, best)
    neutral = rho * (count - 1) / count
    return torch.lerp(
        torch.full_like(gains, neutral), balancing_terms(gains * gates, rho, kind), gates * other
    )


def debiased(average: Tensor, beta: float, steps: Tensor) -> Tensor:
    """Bias-corrected exponential moving average that started from zero.

    Args:
        average: Sum of ``(1 - beta) beta^k value`` over the past, any shape.
        beta: Decay, in [0, 1).
        steps: Number of updates so far, a scalar of at least 1.

    Returns:
        The corrected average, same shape.
    """
    return average / (1 - beta**steps)


def ema_gains(fast: Tensor, slow: Tensor, steps: Tensor, betas: tuple[float, float]) -> Tensor:
    """Gains as a fast minus a slow moving average of the score.

    Differences of consecutive batch scores (the paper's gain) carry a signal-to-noise ratio of
    about 0.01; this difference multiplies it by several hundred, at the price of reacting within
    some hundred steps. Our stabilization, not part of the paper.

    Args:
        fast: Uncorrected average of decay ``betas[0]``, shape ``(M,)``.
        slow: Uncorrected average of decay ``betas[1]``, shape ``(M,)``.
        steps: Number of updates of both, a scalar.
        betas: Decay of the fast and of the slow average.

    Returns:
        Gains, shape ``(M,)``; zero after the first update.
    """
    return debiased(fast, betas[0], steps) - debiased(slow, betas[1], steps)


def weight_gradient(delta: Tensor, layer_input: Tensor, *, channels_last: bool) -> Tensor:
    r"""Gradient :math:`\delta^\top u` of a linear or 1x1 convolutional layer's weight.

    Args:
        delta: Gradient of a loss with respect to the layer's output, ``(B, C, *S)`` for a
            convolution or ``(*S, C)`` for a linear layer.
        layer_input: Input of the layer, ``(B, D, *S)`` or ``(*S, D)``.
        channels_last: Whether the layer is linear, that is, whether its channels come last.

    Returns:
        Gradient of the weight, shape ``(C, D)``, at least float32.
    """
    delta, layer_input = _full_precision(delta), _full_precision(layer_input)
    if channels_last:
        return delta.reshape(-1, delta.shape[-1]).T @ layer_input.reshape(-1, layer_input.shape[-1])
    return torch.einsum("bcs,bds->cd", delta.flatten(2), layer_input.flatten(2))


def last_layer_gradient(
    loss: Tensor,
    layer_input: Tensor | Sequence[Tensor],
    layer_output: Tensor | Sequence[Tensor],
    *,
    channels_last: bool,
    create_graph: bool = True,
) -> Tensor:
    r"""Gradient of a loss with respect to the last layer's weight, differentiable itself.

    Section 3.3.2 of the paper compares these gradients. The graph it builds runs through the loss
    alone, so that no second pass over the network is needed: one ordinary backward of a function of
    the result reaches the layer's input and everything below.

    Args:
        loss: Scalar loss that depends on ``layer_output``.
        layer_input: Input of the last layer, see :func:`weight_gradient`; a sequence where the
            layer was called several times, whose gradients add up.
        layer_output: Output of the last layer, before any interpolation, likewise.
        channels_last: Whether the layer is linear.
        create_graph: Whether the result can be differentiated.

    Returns:
        Gradient, shape ``(C, D)``, at least float32 whatever the autocast type.

    Raises:
        RuntimeError: If the loss does not depend on ``layer_output``, or if a compiled graph lies
            between the two and cannot be differentiated twice.
    """
    inputs = [layer_input] if isinstance(layer_input, Tensor) else list(layer_input)
    outputs = [layer_output] if isinstance(layer_output, Tensor) else list(layer_output)
    half = outputs[0].dtype == torch.float16
    seed = torch.full_like(loss, _HALF_SCALE if half else 1.0)
    deltas = torch.autograd.grad(loss, outputs, seed, retain_graph=True, create_graph=create_graph)
    total = None
    for delta, taken in zip(deltas, inputs, strict=True):
        with torch.autocast(delta.device.type, enabled=False):
            pair = (_base_tensor(delta), _base_tensor(taken))
            part = weight_gradient(*pair, channels_last=channels_last)
        total = part if total is None else total + part
    assert total is not None
    return total / _HALF_SCALE if half else total


def graph_nodes(tensor: Tensor) -> set[Any]:
    """Every node of the graph that a tensor was computed by."""
    found: set[Any] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [below for below, _ in node.next_functions]
    return found


def differentiable_twice(loss: Tensor, layer_output: Tensor | Sequence[Tensor]) -> bool:
    """Whether the gradient of a loss has derivatives itself.

    PyTorch says so only in the backward pass, and names neither the loss nor the setting at fault.
    Some losses, such as CTC, have a first derivative alone.

    Args:
        loss: Scalar loss that depends on ``layer_output``.
        layer_output: Output of the last layer, see :func:`last_layer_gradient`.
    """
    outputs = [layer_output] if isinstance(layer_output, Tensor) else list(layer_output)
    # A function marked as once differentiable says so only where its own gradient needs one.
    seed = torch.ones_like(loss).requires_grad_()
    deltas = torch.autograd.grad(loss, outputs, seed, retain_graph=True, create_graph=True)
    nodes = {type(node).__name__ for delta in deltas for node in graph_nodes(delta)}
    return nodes.isdisjoint(_WITHOUT_DERIVATIVE)


def cosines(fused: Tensor, heads: Tensor) -> Tensor:
    """Cosine between the fused head's gradient and that of each modality's head.

    Args:
        fused: Gradient of the network's last layer, shape ``(C, D)``.
        heads: Gradients of the heads' last layers, shape ``(M, C, D)``.

    Returns:
        Cosines in [-1, 1], shape ``(M,)``; 0 without gradient where a vector is zero.
    """
    # elementwise, because autocast would run a matrix product in half precision
    return (_unit(heads.flatten(1)) * _unit(fused.flatten()[None])).sum(1)


def direction_loss(fused: Tensor, heads: Tensor, terms: Tensor) -> Tensor:
    r"""Direction loss of CGGM, equation (12).

    .. math:: L_{gm} = \frac{1}{M} \sum_i |B_i| - B_i \cos(g_F, g_i)

    Differentiable in ``fused``; a negative term asks for the opposite direction, so use terms that
    cannot be negative. Of no use for a head that carries no signal: its direction is noise.

    Args:
        fused: Gradient of the network's last layer, shape ``(C, D)``.
        heads: Gradients of the heads' last layers, shape ``(M, C, D)``.
        terms: Balancing terms, shape ``(M,)``.

    Returns:
        Scalar in [0, 2 mean|B|].
    """
    return (terms.abs() - terms * cosines(fused, heads)).mean()


def _unit(vectors: Tensor) -> Tensor:
    norms = vectors.norm(dim=1, keepdim=True)
    tiny = torch.finfo(vectors.dtype).tiny
    return torch.where(norms > 0, vectors / norms.clamp_min(tiny), 0.0)


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _base_tensor(tensor: Tensor) -> Tensor:
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)
