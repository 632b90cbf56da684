"""Ties a balancer to a network by removable hooks: the only file that registers or removes them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from cggm.contract import check_encoders, check_output_layer, last_weight
from cggm.late_fusion import LateFusion
from cggm.tensors import Features, map_tensors, plain

# Hooks run eagerly between a compiled network's graphs: they must see every forward pass.
_outside_graphs: Callable[[Callable[..., Any]], Callable[..., Any]] = torch.compiler.disable

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Decode = Callable[[Mapping[str, Features]], Tensor]


@dataclass(frozen=True)
class Captured:
    """What one forward pass left behind.

    Attributes:
        inputs: Arguments of each encoder.
        features: Output of each encoder.
        layer_input: Input of the last layer.
        layer_output: Output of the last layer; of a late-fusion network predictions by modality.
    """

    inputs: Mapping[str, Inputs]
    features: Mapping[str, Features]
    layer_input: Any
    layer_output: Any


@dataclass(frozen=True)
class Callbacks:
    """What a binding calls.

    Args:
        fuse: Modality and its encoder's output to what the network gets in its place.
        before_step: Called before an optimizer that owns a bound parameter steps.
        after_step: Called after such an optimizer really stepped.
    """

    fuse: Callable[[str, Features], Features]
    before_step: Callable[[Optimizer], None]
    after_step: Callable[[], None]


class Binding:
    """Hooks of one balancer on one network.

    Each encoder's output passes through an identity that multiplies its gradient by a factor set
    between the forward and the backward pass. By linearity that equals multiplying every parameter
    gradient of the encoder, without a pass over the parameters, before any clipping, and under any
    optimizer, gradient accumulation, loss scaling and DDP.

    Hooks are silent when the output layer is in eval mode and under ``torch.no_grad``.

    Args:
        encoders: Modality name to encoder.
        output_layer: The network's last parametrized layer, linear or a 1x1 convolution, or
            :class:`cggm.late_fusion.LateFusion`.
        callbacks: What is called, and when.
        decode: Features of all modalities to the network's prediction, where it can be had.

    Raises:
        ValueError: If a module cannot serve, naming it and the remedy.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        output_layer: nn.Module,
        callbacks: Callbacks,
        decode: Decode | None = None,
    ) -> None:
        check_encoders(encoders, output_layer)
        check_output_layer(output_layer, list(encoders))
        self.encoders = dict(encoders)
        self.output_layer = output_layer
        self.scales: Tensor | None = None
        self.update_scales: Tensor | None = None
        self._callbacks = callbacks
        self._decode = decode
        self._decoding = False
        self._inputs: dict[str, Inputs] = {}
        self._features: dict[str, Features] = {}
        self._layer: tuple[Any, Any] | None = None
        self._before_update: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self._parameter_ids = {
            id(p) for module in (*encoders.values(), output_layer) for p in module.parameters()
        }
        self._handles: list[RemovableHandle] = [
            encoder.register_forward_hook(self._encoder_hook(name, index), with_kwargs=True)
            for index, (name, encoder) in enumerate(encoders.items())
        ]
        self._handles += [
            output_layer.register_forward_hook(_outside_graphs(self._output_hook)),
            register_optimizer_step_pre_hook(self._pre_step_hook),
            register_optimizer_step_post_hook(self._post_step_hook),
        ]

    @property
    def names(self) -> list[str]:
        """Modality names, in order."""
        return list(self.encoders)

    @property
    def device(self) -> torch.device:
        """Device of the encoders."""
        return next(next(iter(self.encoders.values())).parameters()).device

    @property
    def output_weight(self) -> Tensor:
        """Weight of the output layer."""
        return last_weight(self.output_layer)

    @property
    def channels_last(self) -> bool:
        """Whether the output layer is linear, so that channels are its output's last axis."""
        return isinstance(self.output_layer, nn.Linear)

    @property
    def late_fusion(self) -> bool:
        """Whether the network predicts from each modality alone and combines the predictions."""
        return isinstance(self.output_layer, LateFusion)

    @property
    def active(self) -> bool:
        """Whether a forward pass now is one of training."""
        return self.output_layer.training and torch.is_grad_enabled()

    @property
    def recomputing(self) -> bool:
        """Whether this is the recomputation of a checkpointed region, no new forward pass."""
        return _in_backward()

    def require_decode(self, method: str) -> None:
        """Refuse a network whose fusion cannot be run again.

        Raises:
            ValueError: If the network was bound without a ``decode``, or with one whose modules
                cannot be found.
        """
        if self._decode is None:
            raise ValueError(
                f"Expected `decode`, with which {method} runs the fusion on other features, but "
                "got none. Give the network a method `decode(features)` that takes what its "
                "encoders return by modality, or pass `decode=` to `bind`."
            )
        if self._decoder is None:
            raise ValueError(
                f"Expected `decode` to be a module or a method of one, because {method} sets the "
                "mode of its modules and keeps their running statistics, but got "
                f"{type(self._decode).__name__}. Pass a bound method such as `network.decode`."
            )

    def require_late_fusion(self, method: str) -> None:
        """Refuse a network that does not predict from each modality alone.

        Raises:
            ValueError: If the output layer is no :class:`cggm.late_fusion.LateFusion`.
        """
        if not self.late_fusion:
            raise ValueError(
                f"Expected a late-fusion network, because {method} trains a prediction of each "
                f"modality, but the output layer is {type(self.output_layer).__name__}. "
                "Use a network whose `output_layer` is a `cggm.late_fusion.LateFusion`."
            )

    def decode(self, features: Mapping[str, Features], *, training: bool = True) -> Tensor:
        """The network's prediction from other features: one more pass through its fusion.

        It has gradients and leaves no trace: running statistics, such as BatchNorm's, move by the
        network's own forward pass alone.

        Args:
            features: Modality to features like those that its encoder returns.
            training: Whether modules keep the mode they are in; otherwise the pass runs in eval
                mode, without dropout and by running statistics.
        """
        assert self._decode is not None
        assert self._decoder is not None
        modules = self._decoder.named_modules(memo=set(self.encoders.values()))
        self._decoding = True
        try:
            with _untouched([module for _, module in modules], training):
                prediction: Tensor = plain(self._decode(features))
        finally:
            self._decoding = False
        return prediction

    def on_output(self, network: nn.Module, function: Callable[[Any], Any]) -> RemovableHandle:
        """Pass the network's output through a function, in training only; removable alone."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401
            return function(output) if self.active and not _in_backward() else output

        handle = network.register_forward_hook(_outside_graphs(hook))
        self._handles.append(handle)
        return handle

    def take(self) -> Captured:
        """Hand over what the last forward pass left, once.

        Raises:
            RuntimeError: If an encoder or the output layer did not run since the last call.
        """
        missing = [name for name in self.encoders if name not in self._features]
        if missing or self._layer is None:
            what = f"encoders {missing}" if missing else "the output layer"
            raise RuntimeError(
                f"Expected a training forward pass through {what} before the criterion was called, "
                "but none was seen. Call the criterion once per forward pass, with gradients on; "
                "bind before the first call of a compiled network; use activation checkpointing "
                "with use_reentrant=False."
            )
        captured = Captured(self._inputs, self._features, *self._layer)
        self._inputs, self._features, self._layer = {}, {}, None
        return captured

    def window_kept(self) -> Tensor | bool:
        """Whether the gradients accumulated so far are still there, as a device tensor.

        They are gone once ``zero_grad`` opened a new window, and not worth keeping once they are
        not finite: both follow a step that a gradient scaler skipped.
        """
        owners = (self.output_layer, *self.encoders.values())
        parameter = next(p for m in owners for p in m.parameters() if p.requires_grad)
        if parameter.grad is None:
            return False
        total: Tensor = plain(parameter.grad).abs().sum()
        return torch.isfinite(total) & (total > 0)

    def gradient_norms(self, optimizer: Optimizer) -> Tensor:
        """Euclidean norm of each encoder's parameter gradients, ``(M,)``, without a loss scale."""
        norms = [
            torch.nn.utils.get_total_norm([p.grad for p in e.parameters() if p.grad is not None])
            for e in self.encoders.values()
        ]
        scale = getattr(optimizer, "grad_scale", None)
        stacked = torch.stack([plain(norm).float().to(self.device) for norm in norms])
        return stacked if scale is None else stacked / scale

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def _decoder(self) -> nn.Module | None:
        """The module that ``decode`` is, or is a method of."""
        owner = getattr(self._decode, "__self__", self._decode)
        return owner if isinstance(owner, nn.Module) else None

    def _encoder_hook(self, name: str, index: int) -> Callable[..., Features]:
        def scale(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            return _ScaledGradient.apply(tensor, self, index)  # type: ignore[no-any-return]

        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Features
        ) -> Features:
            if not self.active or module is not self.encoders[name]:  # a copy keeps hooks
                return output
            if not _in_backward():
                self._inputs[name] = (args, kwargs)
                self._features[name] = map_tensors(plain, output)
            return self._callbacks.fuse(name, map_tensors(scale, output))

        return _outside_graphs(hook)

    def _output_hook(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        if self._decoding or _in_backward():
            return
        if self.active and module is self.output_layer:
            self._layer = (args[0], output)

    def _pre_step_hook(self, optimizer: Optimizer, *arguments: Any) -> None:  # noqa: ANN401
        if not self._owns(optimizer):
            return
        self._callbacks.before_step(optimizer)
        if self.update_scales is not None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, encoder in self.encoders.items():
                moving = [p for p in encoder.parameters() if id(p) in held and p.grad is not None]
                data = [p.detach() for p in moving]
                self._before_update[name] = (data, [p.clone() for p in data])

    def _post_step_hook(self, optimizer: Optimizer, *arguments: Any) -> None:  # noqa: ANN401
        if not self._owns(optimizer):
            return
        self._scale_update()
        if not _was_skipped(optimizer):
            self._callbacks.after_step()

    @torch.no_grad()
    def _scale_update(self) -> None:
        if self.update_scales is None:
            return
        for scale, name in zip(self.update_scales, self.encoders, strict=True):
            after, before = self._before_update.pop(name, ([], []))
            if after:
                torch._foreach_sub_(after, before)
                torch._foreach_mul_(after, scale)
                torch._foreach_add_(after, before)

    def _owns(self, optimizer: Optimizer) -> bool:
        return any(
            id(p) in self._parameter_ids
            for group in optimizer.param_groups
            for p in group["params"]
        )


class _ScaledGradient(torch.autograd.Function):
    """Identity whose backward multiplies the gradient by an encoder's factor, read late."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, binding: Binding, index: int) -> Tensor:  # noqa: ANN401
        ctx.binding, ctx.index = binding, index
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        scales = ctx.binding.scales
        return gradient if scales is None else gradient * scales[ctx.index], None, None


@contextmanager
def recorded(encoders: Mapping[str, nn.Module]) -> Iterator[dict[str, Features]]:
    """What each encoder returns, by modality, filled by every forward pass in any mode.

    Args:
        encoders: Modality name to encoder.
    """
    features: dict[str, Features] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Features) -> None:
            features[name] = map_tensors(plain, output)

        return hook

    handles = [e.register_forward_hook(hook_of(name)) for name, e in encoders.items()]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _untouched(modules: list[nn.Module], training: bool) -> Iterator[None]:
    """Run modules in their mode or in eval mode, and give them their mode and buffers back."""
    before = [(module, module.training, module._buffers) for module in modules]
    try:
        for module, mode, buffers in before:
            module.training = mode and training
            if module.training:
                # copies take the updates: writing old values back would upset a later backward
                module._buffers = {k: None if b is None else b.clone() for k, b in buffers.items()}
        yield
    finally:
        for module, mode, buffers in before:
            module.training, module._buffers = mode, buffers


def _in_backward() -> bool:
    """Whether this is the recomputation of a checkpointed region, which is no new forward pass."""
    return torch._C._current_graph_task_id() != -1


def _was_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer was called by a GradScaler and skipped the step on the device."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)
