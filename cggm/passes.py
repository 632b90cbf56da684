"""Passes through a network: what a forward pass left, and what the backward pass is scaled by."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cggm.functional import graph_nodes
from cggm.tensors import Features, Presence, check_batch_first, tensors_in, without_subclass

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a module."""

REPEATED = (
    "Encoder {name!r} was called several times in a forward pass (views or time points?), and "
    "{method} sees the last of its calls alone. Call it once, on all of them stacked along the "
    "batch axis."
)

PARTLY_SCALED = (
    "The loss depends on parameters of encoder {name!r} by another path than what it returned (one "
    "of its modules called alone, something that it keeps, a weight used elsewhere?), and the "
    "gradient of that path is not scaled. Let the encoder return all that the network uses of it."
)

SCALED_TWICE = (
    "Encoder {name!r} takes what depends on another encoder or on parameters that are used "
    "elsewhere, too, and the gradient that reaches them through it is scaled by the factor of "
    "{name!r}. Detach what it takes, or scale updates in place of gradients where the method can "
    '(acts_on="update").'
)

TAKEN_OVER = (
    "Another balancer was bound to this network, and both would act on it. It is unbound now, and "
    "{method} takes its place."
)

NO_STEP = (
    "{method} was called {calls} times and saw no optimizer step, so that its state and its heads "
    "do not move. If something else than a torch.optim.Optimizer updates the network, do it within "
    "`with balancer.updating():`."
)

# Gradients of a loss that a gradient scaler multiplied are huge, as long as it skips steps.
_LARGE = 64.0

# Passes kept until the criterion is called: one of them, and those whose loss is another's.
_KEPT_PASSES = 4


@dataclass(frozen=True)
class Step:
    """One training forward pass, as a method sees it.

    Attributes:
        inputs: Positional and keyword arguments of each encoder by modality.
        features: Output of each encoder by modality, with its graph, as it was before ``fuse``.
            Modalities whose encoder did not run are left out.
        prediction: The network's prediction, ``(B, ...)``, or a container of such tensors.
        target: What the task loss compares it with.
        loss: Task loss of the prediction, a scalar.
        layer_inputs: Input of the output layer, ``(B, D, *S)`` or ``(*S, D)``, one for each of its
            calls.
        layer_outputs: Output of the output layer, ``(B, C, *S)`` or ``(*S, C)``, likewise.
        unimodal: Prediction of each modality alone by a late-fusion network's own heads; empty for
            any other network. Where it is not empty, the two attributes above are empty.
        presence: Which samples have which modality; ``None`` where all have all.
    """

    inputs: Mapping[str, Inputs]
    features: Mapping[str, Features]
    prediction: Any
    target: Any
    loss: Tensor
    layer_inputs: tuple[Tensor, ...]
    layer_outputs: tuple[Tensor, ...]
    unimodal: Mapping[str, Tensor]
    presence: Presence | None = None

    @property
    def layer_input(self) -> Tensor:
        """Input of the output layer's only call.

        Raises:
            ValueError: If it was called several times.
        """
        if len(self.layer_inputs) != 1:
            raise ValueError(
                "Expected one call of the output layer in a forward pass, because this method "
                f"looks at its input, but got {len(self.layer_inputs)}. Call it once, on all of "
                "its inputs stacked."
            )
        return self.layer_inputs[0]


@dataclass(frozen=True)
class Captured:
    """What one forward pass left behind.

    Attributes:
        inputs: Arguments of each encoder that ran.
        features: Output of each encoder that ran.
        layer_inputs: Input of the output layer, one for each of its calls.
        layer_outputs: Its output, likewise; of a late-fusion network predictions by modality.
        repeated: Encoders that ran several times, on other inputs; the last call is what counts.
    """

    inputs: Mapping[str, Inputs]
    features: Mapping[str, Features]
    layer_inputs: tuple[Any, ...]
    layer_outputs: tuple[Any, ...]
    repeated: list[str]

    def as_step(
        self,
        prediction: Any,  # noqa: ANN401
        target: Any,  # noqa: ANN401
        loss: Tensor,
        presence: Presence | None,
    ) -> Step:
        """What a method sees of it, see :class:`Step`."""
        layer, unimodal = (self.layer_inputs, self.layer_outputs), {}
        if isinstance(self.layer_outputs[-1], Mapping):  # a late fusion predicts by modality
            parts = self.layer_outputs[-1].items()
            layer, unimodal = ((), ()), {name: without_subclass(part) for name, part in parts}
            if isinstance(prediction, Tensor):  # which a host may have converted to float32
                unimodal = {name: part.to(prediction.dtype) for name, part in unimodal.items()}
        batch = (prediction, target, loss)
        return Step(self.inputs, self.features, *batch, *layer, unimodal, presence)


@dataclass(frozen=True)
class _Call:
    """One call of a module."""

    inputs: Any
    output: Any

    def reached(self, nodes: set[Any] | None) -> bool:
        """Whether the loss depends on it; taken for granted where it has no graph."""
        graphs = [t.grad_fn for t in tensors_in(self.output) if t.grad_fn is not None]
        return nodes is None or not graphs or any(graph in nodes for graph in graphs)


@dataclass
class _Pass:
    """Calls of encoders, and then of the output layer."""

    encoders: dict[str, list[_Call]] = field(default_factory=dict)
    layer: list[_Call] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        """Whether every module ran once at most, so that nothing is to be told apart."""
        return len(self.layer) == 1 and all(len(calls) == 1 for calls in self.encoders.values())


class Recorder:
    """Notes calls of encoders and output layer until the criterion asks for them.

    Several calls of the output layer belong together. A forward pass whose loss is another one's,
    such as that of an unlabeled batch, is told apart by the graph of the loss.

    Args:
        names: Modalities, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._passes: deque[_Pass] = deque([_Pass()], maxlen=_KEPT_PASSES)
        self._ever: set[str] = set()
        self._without_graph: set[str] = set()

    def note_encoder(self, name: str, inputs: Inputs, output: Features) -> None:
        """Note a call of an encoder, with its arguments and what it returned."""
        current = self._passes[-1]
        if current.layer and name in current.encoders:
            current = _Pass()
            self._passes.append(current)
        current.encoders.setdefault(name, []).append(_Call(inputs, output))
        self._ever.add(name)

    def note_absent(self, name: str) -> None:
        """Note that an encoder returned nothing."""
        self._ever.add(name)

    def note_layer(self, layer_input: Any, output: Any) -> None:  # noqa: ANN401
        """Note a call of the output layer."""
        self._passes[-1].layer.append(_Call(layer_input, output))

    def note_without_graph(self, name: str) -> None:
        """Note a call of an encoder under ``torch.no_grad``."""
        self._without_graph.add(name)

    def take(self, loss: Tensor | None, presence: Presence | None) -> Captured:
        """Hand over what the forward pass of a loss left, and forget the others.

        Args:
            loss: Scalar with its graph; ``None`` for all calls, whatever they led to.
            presence: What the caller said of the batch, where it said something.

        Raises:
            RuntimeError: If a module did not run though it should have.
        """
        encoders, layer = self._of(loss)
        without_graph, self._without_graph = self._without_graph, set()
        self._passes = deque([_Pass()], maxlen=_KEPT_PASSES)
        missing = [name for name in self._names if name not in encoders]
        if not layer or len(missing) == len(self._names) or without_graph & set(missing):
            what = f"encoders {missing}" if missing else "the output layer"
            raise RuntimeError(
                f"Expected a training forward pass through {what} before the criterion was called, "
                "but none was seen. Call the criterion once per forward pass, with gradients on; "
                "bind before the first call of a compiled network; use activation checkpointing "
                "with use_reentrant=False."
            )
        self._check_missing(missing, presence)
        repeated = [name for name, calls in encoders.items() if not _alike(calls)]
        return Captured(
            {name: calls[-1].inputs for name, calls in encoders.items()},
            {name: calls[-1].output for name, calls in encoders.items()},
            tuple(call.inputs for call in layer),
            tuple(call.output for call in layer),
            repeated,
        )

    def _of(self, loss: Tensor | None) -> tuple[dict[str, list[_Call]], list[_Call]]:
        """Calls by encoder, in the encoders' order, and calls of the output layer."""
        if len(self._passes) == 1 and self._passes[0].plain:
            whole = self._passes[0]
        else:
            nodes = None if loss is None else graph_nodes(loss)
            whole = _Pass()
            for part in self._passes:
                for name, calls in part.encoders.items():
                    if reached := [call for call in calls if call.reached(nodes)]:
                        whole.encoders.setdefault(name, []).extend(reached)
                whole.layer += [call for call in part.layer if call.reached(nodes)]
        ordered = {n: whole.encoders[n] for n in self._names if n in whole.encoders}
        return ordered, whole.layer

    def _check_missing(self, missing: Sequence[str], presence: Presence | None) -> None:
        """Refuse an encoder that was skipped though nothing says that its modality is absent."""
        for name in missing:
            told = presence is not None and name in presence.absent
            if told or (presence is None and name in self._ever):
                continue
            raise RuntimeError(
                f"Expected encoder {name!r} to run, but the network skipped it. If this batch "
                f"lacks the modality, say so before the forward pass: "
                f"`balancer.present({{{name!r}: False}})`; or feed zeros and say so."
            )


def _alike(calls: Sequence[_Call]) -> bool:
    """Whether all calls took the same tensors, as they do where a network encodes anew."""
    taken = [[id(tensor) for tensor in tensors_in(call.inputs)] for call in calls]
    return all(ids == taken[0] for ids in taken)


@dataclass
class Factors:
    """Factors of the encoders' gradients and updates, filled between forward and backward pass.

    Attributes:
        gradient: Factor of each encoder's gradient, ``(M,)``, or ``None`` for none.
        update: Factor of each encoder's parameter update, ``(M,)``, or ``None`` for none.
        masks: By place of a modality that samples lack: samples whose gradient is scaled, bool
            ``(B,)``, or ``None`` where none is.
        watching: Whether the next backward pass notes how large a gradient is.
        largest: What it noted, a scalar.
    """

    gradient: Tensor | None = None
    update: Tensor | None = None
    masks: dict[int, Tensor | None] = field(default_factory=dict)
    watching: bool = False
    largest: Tensor | None = None
    _before: list[tuple[list[Tensor], list[Tensor]]] = field(default_factory=list)

    def overflow(self) -> bool:
        """Whether the last backward pass had huge gradients; the first time, note it from now on.

        Waits for the device.
        """
        if self.largest is None:
            self.watching = True
            return False
        large = not float(self.largest) < _LARGE  # NaN is large, too
        self.largest = None if large else self.largest
        return large

    def leave_out(
        self, presence: Presence, features: Mapping[str, Features], device: torch.device
    ) -> None:
        """Scale no gradient of a sample that lacks the modality."""
        for index, name in enumerate(presence.masks):
            rows = presence.rows(name)
            if rows and name in features:
                check_batch_first(features[name], len(presence.masks[name]), name)
            if rows is not None:
                mask = presence.masks[name].to(device, non_blocking=True)
                self.masks[index] = mask if rows else None

    def remember(self, parameters: Sequence[Tensor]) -> None:
        """Keep what the next encoder's parameters are before an update."""
        data = [p.detach() for p in parameters]
        self._before.append((data, [p.clone() for p in data]))

    @torch.no_grad()
    def scale_update(self) -> None:
        """Multiply what has been added to the parameters since by ``update``."""
        if self.update is not None:
            for scale, (after, before) in zip(self.update, self._before, strict=False):
                if after:
                    torch._foreach_sub_(after, before)
                    torch._foreach_mul_(after, scale)
                    torch._foreach_add_(after, before)
        self._before.clear()


class ScaledGradient(torch.autograd.Function):
    """Identity whose backward multiplies the gradient by an encoder's factor, read late."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factors: Factors, index: int) -> Tensor:  # noqa: ANN401, D102
        ctx.factors, ctx.index = factors, index
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401, D102
        factors: Factors = ctx.factors
        if factors.watching:
            factors.largest = gradient.detach().abs().amax() if gradient.numel() else None
            factors.watching = False
        if factors.gradient is None:
            return gradient, None, None
        scale = factors.gradient[ctx.index]
        if ctx.index in factors.masks:
            mask = factors.masks[ctx.index]
            # samples without the modality keep the gradient that the network gives them
            if mask is None:
                return gradient, None, None
            if gradient.ndim:  # a number belongs to no sample
                shape = [-1, *[1] * (gradient.ndim - 1)]
                scale = torch.where(mask, scale, 1.0).reshape(shape).to(gradient.dtype)
        return gradient * scale, None, None


def shared_paths(
    loss: Tensor, factors: Factors, encoders: Mapping[str, nn.Module]
) -> tuple[list[str], list[str]]:
    """Encoders whose gradient is scaled in part, and those that scale the gradient of others.

    A factor acts where an encoder returns. Parameters that feed a single encoder, such as its
    embedding, count as a part of it.

    Args:
        loss: Scalar with its graph.
        factors: Those of the binding.
        encoders: Modality name to encoder.

    Returns:
        Encoders on whose parameters the loss depends by another path than what they returned, and
        encoders that take what depends on another encoder, or on parameters that also reach the
        loss otherwise.
    """
    names = list(encoders)
    owners = {id(p): name for name, e in encoders.items() for p in e.parameters()}
    direct, gates = _leaves_and_gates([loss.grad_fn], factors)
    partly = {owners[leaf] for leaf in direct & set(owners)}
    taken: dict[str, set[int]] = {}
    chained: set[str] = set()
    done: set[Any] = set()
    while open_gates := gates - done:
        done |= open_gates
        for index in {gate.index for gate in open_gates}:
            roots = [n for g in open_gates if g.index == index for n, _ in g.next_functions]
            leaves, inner = _leaves_and_gates(roots, factors)
            own = {leaf for leaf in leaves if owners.get(leaf) == names[index]}
            taken.setdefault(names[index], set()).update(leaves - own)
            chained |= {names[index]} if inner else set()
            gates = gates | inner
    for name, leaves in taken.items():
        others = set().union(direct, owners, *(taken[n] for n in taken if n != name))
        chained |= {name} if leaves & others else set()
    return [n for n in names if n in partly], [n for n in names if n in chained]


def _leaves_and_gates(roots: Sequence[Any], factors: Factors) -> tuple[set[int], set[Any]]:
    """Parameters, by id, and scaled outputs of encoders that a graph depends on first."""
    found: set[Any] = set()
    leaves, gates, waiting = set(), set(), list(roots)
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        found.add(node)
        if getattr(node, "factors", None) is factors:
            gates.add(node)
            continue
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            leaves.add(id(node.variable))
        waiting += [below for below, _ in node.next_functions]
    return leaves, gates


@dataclass
class Seen:
    """Whether a backward pass came by."""

    backward: bool = False


class SeenBackward(torch.autograd.Function):
    """Identity of a loss whose backward is noted."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, seen: Seen) -> Tensor:  # noqa: ANN401, D102
        ctx.seen = seen
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401, D102
        ctx.seen.backward = True
        return gradient, None
