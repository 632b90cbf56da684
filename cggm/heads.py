"""Per-modality predictions from detached features: the classifiers f_i of the paper."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from cggm.contract import check_graph, check_scalar
from cggm.distributed import broadcast_from_first, mean_over_ranks, sum_over_ranks, world_size
from cggm.scores import Score, Window, score_counts
from cggm.tensors import (
    Features,
    Presence,
    check_moments,
    map_tensors,
    samples_with,
)

Criterion = Callable[[Any, Any], Tensor]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]

default_optimizer: OptimizerFactory = partial(torch.optim.Adam, lr=5e-4)


@dataclass(frozen=True)
class HeadReadings:
    """What the heads say about one micro-batch.

    Attributes:
        losses: Task loss of each head, shape ``(M,)``; NaN where no sample has the modality.
        counts: Numerators and denominators of each head's score, shape ``(M, 2, K)``.
        gradients: Gradient of each head's last weight, mean over ranks, shape ``(M, C, D)``.
        seen: Share of the samples that have each modality, shape ``(M,)``.
        weights: What this rank's losses are multiplied by, ``(M,)``, so that their mean over ranks
            is one over the samples that have the modality; 1 where no sample lacks it.
    """

    losses: Tensor
    counts: Tensor
    gradients: Tensor
    seen: Tensor
    weights: Tensor


class Heads(nn.ModuleDict):
    """One head per modality, trained beside the network by an optimizer of their own.

    Heads see detached features, so that the network's optimizer, schedule and clipping are
    untouched, and learn inside the criterion call, one after another, which keeps one head's
    activations in memory at a time. Their gradients are kept apart from ``grad`` until their own
    optimizer steps, so that a head that another optimizer holds as well is not moved by it.

    Features come in the type of a head's weights, whatever the encoder's. Half precision by float16
    autocast is left to the network: without a loss scale of their own the heads run in float32
    there.

    Args:
        heads: Modality name to module; each ends in an attribute ``output_layer`` of the network's
            last layer's shape.
        optimizer: Builds the optimizer from the heads' parameters.

    Attributes:
        window: Gradients since the last step, and how many micro-batches each head saw, by share
            of the samples.

    Raises:
        ValueError: If a head has no ``output_layer`` with a weight.
    """

    def __init__(
        self, heads: Mapping[str, nn.Module], optimizer: OptimizerFactory = default_optimizer
    ) -> None:
        super().__init__(dict(heads))
        for name, head in self.items():
            weight = getattr(getattr(head, "output_layer", None), "weight", None)
            if isinstance(weight, Tensor) and type(weight) is not nn.Parameter:
                raise ValueError(
                    f"Expected the `output_layer` of head {name!r} to have a weight of its own, "
                    f"but got a {type(weight).__name__}. Run a lazy layer once; leave weight or "
                    "spectral normalization to the network."
                )
            if not isinstance(weight, Tensor):
                raise ValueError(
                    f"Expected head {name!r} to have an attribute `output_layer` with a weight, "
                    f"but {type(head).__name__} has none. Name its last layer `output_layer`."
                )
        self.optimizer = optimizer(list(self.parameters()))
        self.window = Window()
        self._lacking: list[str] = []

    def output_weight(self, name: str) -> Tensor:
        """Weight of a head's last layer."""
        return _output_weight(self[name])

    def place(self, device: torch.device) -> None:
        """Move heads and their optimizer's state to a device; make all ranks start alike."""
        self.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        self.window = Window()
        broadcast_from_first(self.parameters())

    def observe(
        self,
        features: Mapping[str, Features],
        target: Any,  # noqa: ANN401
        task_loss: Criterion,
        score: Score,
        presence: Presence | None = None,
    ) -> HeadReadings:
        """Predict from each modality alone, and add to the heads' gradients.

        Args:
            features: Output of each encoder; may lack modalities that no sample has.
            target: What the task loss compares predictions with.
            task_loss: ``(prediction, target)`` to a scalar.
            score: See :func:`cggm.scores.score_counts`.
            presence: Which samples have which modality; ``None`` where all have all. A head sees
                the samples that have its modality.

        Returns:
            Losses, score counts and last-layer gradients.
        """
        seen = dict.fromkeys(self, 1.0)
        if presence is not None:
            seen = {name: presence.share(name) for name in self}
        self._lacking = [name for name in self if not seen[name]]
        found = {}
        for name in self:
            if seen[name] > 0:
                batch = samples_with(features[name], target, name, presence)
                found[name] = self._observe_one(name, *batch, task_loss, score, seen[name])
        shape = next(iter(found.values()))[1].shape
        rows = [found.get(name) or self._observe_none(name, shape) for name in self]
        losses, counts, gradients = (torch.stack(column) for column in zip(*rows, strict=True))
        shares = torch.ones(len(rows), device=gradients.device)
        if presence is not None:
            shares.copy_(torch.tensor(list(seen.values())), non_blocking=True)
        self.window.add("seen", shares)
        return HeadReadings(losses, counts, *_mean_by_share(gradients, shares))

    def losses(
        self,
        features: Mapping[str, Features],
        target: Any,  # noqa: ANN401
        task_loss: Criterion,
        presence: Presence | None = None,
    ) -> Tensor:
        """Loss of each head, ``(M,)``, differentiable in the features; heads are constants.

        One more pass through the heads, which leaves their gradients and batch statistics alone.

        Args:
            features: Output of each encoder, with its graph.
            target: What the task loss compares predictions with.
            task_loss: ``(prediction, target)`` to a scalar.
            presence: See :meth:`observe`; the loss is 0 where no sample has the modality.
        """
        losses = []
        for name in self:
            if presence is not None and name in presence.absent:
                losses.append(torch.zeros((), device=self.output_weight(name).device))
                continue
            own, wanted = samples_with(features[name], target, name, presence)
            loss = task_loss(self.alone(name, own), wanted)
            losses.append(loss.to(torch.promote_types(loss.dtype, torch.float32)))
        return torch.stack(losses)

    def alone(self, name: str, features: Features) -> Any:  # noqa: ANN401
        """Prediction of a head, differentiable in the features; its parameters are constants."""
        head = self[name]
        constants = {key: p.detach() for key, p in head.named_parameters()}
        buffers = {key: b.clone() for key, b in head.named_buffers()}
        own = map_tensors(partial(_as_head_takes, head=head, in_full=False), features)
        return functional_call(head, constants | buffers, (own,))

    def step(self) -> None:
        """Let the heads' optimizer step by the mean gradient of the window and of all ranks.

        A head that no sample of the window had a modality for is left as it is.
        """
        if "seen" not in self.window:
            return
        parameters = dict(self.named_parameters())
        found = self.window.named("gradient/")
        # Ranks exchange them in one row: their order must not depend on who saw what first.
        gradients = {name: found[name] for name in parameters if name in found}
        (total,) = sum_over_ranks([self.window["seen"]])
        idle = self._idle(total)
        for name, mean in zip(gradients, self._means(gradients, total), strict=True):
            if self._owner(name) not in idle:
                parameters[name].grad = mean
        self.optimizer.step()
        for parameter in parameters.values():
            parameter.grad = None
        self.window.clear()

    def lost(self) -> list[str]:
        """A message for each head that has a weight that is not finite; waits for the device."""
        found = []
        for name, head in self.items():
            sizes = [p.detach().abs().amax() for p in head.parameters() if p.numel()]
            if not torch.stack(sizes).isfinite().cpu().numpy().all():
                found.append(
                    f"The head of {name!r} has weights that are not finite, so that it does not "
                    "judge its modality any more, whose score stays what it was. Lower the heads' "
                    "learning rate, or look for features or targets that are not finite."
                )
        return found

    def get_extra_state(self) -> dict[str, Any]:
        """State of the heads' optimizer, saved along with the heads."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave; its moments must fit the heads."""
        self.optimizer.load_state_dict(state)
        check_moments(self.optimizer)

    def _idle(self, total: Tensor) -> set[str]:
        """Heads that no rank had a sample for, which momentum must not move either.

        The device is asked only where this rank's last micro-batch lacked a modality.
        """
        if not self._lacking:
            return set()
        return {name for name, seen in zip(self, total.tolist(), strict=True) if not seen}

    def _means(self, gradients: Mapping[str, Tensor], total: Tensor) -> list[Tensor]:
        """Mean of each gradient over micro-batches and ranks, by shares of samples."""
        seen, share = self.window["seen"], total / world_size()
        # each rank's mean, times its weight among the ranks: 1 where all saw as much
        weights = torch.where(total > 0, seen / share, 0.0)
        index = {name: i for i, name in enumerate(self)}
        owners = [index[self._owner(name)] for name in gradients]
        counts = torch.where(seen > 0, seen, 1.0)
        means = [
            g / counts[i].to(g.dtype) * weights[i].to(g.dtype)
            for i, g in zip(owners, gradients.values(), strict=True)
        ]
        return mean_over_ranks(means)

    def _owner(self, parameter: str) -> str:
        """Modality of a parameter's head; names of modalities may hold dots."""
        return max((n for n in self if parameter.startswith(f"{n}.")), key=len)

    def _observe_one(
        self,
        name: str,
        features: Features,
        target: Any,  # noqa: ANN401
        task_loss: Criterion,
        score: Score,
        share: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, weight = self[name], self.output_weight(name)
        parameters = {k: p for k, p in head.named_parameters() if p.requires_grad}
        with _without_half(weight.device.type) as in_full:
            detached = map_tensors(torch.Tensor.detach, features)
            prediction = head(
                map_tensors(partial(_as_head_takes, head=head, in_full=in_full), detached)
            )
            loss = task_loss(prediction, target)
        check_scalar(loss, f"head {name!r}")
        check_graph(loss, f"head {name!r}")
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        last = None
        for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            last = gradient if parameter is weight else last
            if gradient is not None:
                weighted = gradient if share == 1 else gradient * share
                self.window.add(f"gradient/{name}.{key}", weighted)
        if last is None:
            raise RuntimeError(
                f"Expected the loss of {type(head).__name__} to depend on the trainable weight of "
                "its `output_layer`, but it does not. Let it be the head's last layer."
            )
        counts = score_counts(score, map_tensors(torch.Tensor.detach, prediction), target)
        return loss.detach().float(), counts, last.flatten(1).clone()

    def _observe_none(self, name: str, counts: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """What a head says of a batch in which no sample has its modality."""
        weight = self.output_weight(name)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for key, p in self[name].named_parameters():  # ranks exchange the same tensors
                if p.requires_grad:
                    self.window.add(f"gradient/{name}.{key}", torch.zeros_like(p))
        nothing = torch.full((), torch.nan, device=weight.device)
        return nothing, weight.new_zeros(counts).float(), torch.zeros_like(weight).flatten(1)


def _mean_by_share(gradients: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over ranks of gradients ``(M, C, D)``, by how many samples each rank has.

    Returns:
        The mean, the shares themselves, and this rank's weights among the ranks, ``(M,)``.
    """
    weighted = gradients * shares[:, None, None].to(gradients.dtype)
    total, weight = sum_over_ranks([weighted, shares.to(gradients.dtype)])
    mean = total / torch.where(weight > 0, weight, 1.0)[:, None, None]
    weights = torch.where(weight > 0, shares * world_size() / weight, 0.0)
    return mean, shares, weights


def _output_weight(head: nn.Module) -> Tensor:
    weight = head.output_layer.weight  # type: ignore[union-attr]
    assert isinstance(weight, Tensor)
    return weight


@contextmanager
def _without_half(device_type: str) -> Iterator[bool]:
    half = torch.is_autocast_enabled(device_type) and (
        torch.get_autocast_dtype(device_type) == torch.float16
    )
    with torch.autocast(device_type, enabled=False) if half else nullcontext():
        yield half


def _as_head_takes(tensor: Tensor, head: nn.Module, in_full: bool) -> Tensor:
    """A tensor of numbers in the type of a head's weights, unless autocast decides of types."""
    if not tensor.is_floating_point():
        return tensor
    if in_full:
        return tensor.float() if tensor.dtype == torch.float16 else tensor
    if torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.to(_output_weight(head).dtype)


class _LinearHead(nn.Module):
    """The mean over all axes but the first and the last, a hidden layer, and the last layer."""

    def __init__(self, width: int, last: nn.Linear) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, last.in_features), nn.ReLU())
        self.output_layer = nn.Linear(last.in_features, last.out_features, last.bias is not None)

    def forward(self, feature: Tensor) -> Tensor:
        vector = feature.flatten(1, -2).mean(1) if feature.ndim > 2 else feature
        prediction: Tensor = self.output_layer(self.hidden(vector))
        return prediction


class _ConvHead(nn.Module):
    """A hidden 1x1 convolution, the last layer, and the prediction at the size of the target."""

    def __init__(self, channels: int, last: Convolution, scale: float) -> None:
        super().__init__()
        convolution = type(last)
        inner, out = last.in_channels, last.out_channels
        self.hidden = nn.Sequential(convolution(channels, inner, 1), nn.ReLU())
        self.output_layer = convolution(inner, out, 1, bias=last.bias is not None)
        self.scale = scale
        self.mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(last.weight.shape) - 2]

    def forward(self, feature: Tensor) -> Tensor:
        prediction: Tensor = self.output_layer(self.hidden(feature))
        if self.scale == 1:
            return prediction
        return nn.functional.interpolate(prediction, scale_factor=self.scale, mode=self.mode)


def linear_heads(output_layer: nn.Module, widths: Mapping[str, int]) -> nn.ModuleDict:
    """Heads for encoders that return vectors ``(B, D)`` or sequences ``(B, ..., D)``.

    Each averages what lies between the first and the last axis, and ends as the network does.
    Sequences must not be padded, for the mean knows no mask; write a head of your own for these.

    Args:
        output_layer: The network's last layer, a linear one; a head's own has its shape.
        widths: Modality name to the D of its encoder's output, in the order of the encoders.

    Returns:
        To be given to a method as ``heads``.

    Raises:
        ValueError: If the last layer is not linear.

    Example:
        >>> heads = linear_heads(nn.Linear(16, 3), {"text": 300, "audio": 74})
        >>> heads["text"](torch.zeros(2, 20, 300)).shape
        torch.Size([2, 3])
    """
    if not isinstance(output_layer, nn.Linear):
        raise ValueError(
            f"Expected a linear last layer, but got {type(output_layer).__name__}; conv_heads "
            "serves convolutions."
        )
    heads = {name: _LinearHead(width, output_layer) for name, width in widths.items()}
    return nn.ModuleDict(heads)


def conv_heads(
    output_layer: nn.Module, channels: Mapping[str, int], *, scale: float = 1
) -> nn.ModuleDict:
    """Heads for encoders that return maps ``(B, C, H, W)``, or of one or three spatial axes.

    Args:
        output_layer: The network's last layer, a convolution; a head's own is a 1x1 one of its
            channels.
        channels: Modality name to the C of its encoder's output, in the order of the encoders.
        scale: How much larger the target is than that output, along each axis.

    Returns:
        To be given to a method as ``heads``.

    Raises:
        ValueError: If the last layer is no 1x1 convolution.

    Example:
        >>> heads = conv_heads(nn.Conv2d(8, 4, 1), {"t1": 32, "t2": 32}, scale=16)
        >>> heads["t2"](torch.zeros(1, 32, 10, 10)).shape
        torch.Size([1, 4, 160, 160])
    """
    if not isinstance(output_layer, Convolution) or {*output_layer.kernel_size} != {1}:
        raise ValueError(
            f"Expected a 1x1 convolution as the last layer, but got {output_layer}; linear_heads "
            "serves linear ones."
        )
    heads = {name: _ConvHead(width, output_layer, scale) for name, width in channels.items()}
    return nn.ModuleDict(heads)
