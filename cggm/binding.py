"""Hooks that tie a balancer to a network: the only file that registers or removes any."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from cggm.contract import (
    Decode,
    Decoder,
    check_encoders,
    check_output_layer,
    check_scalable,
    check_scaled,
    last_weight,
)
from cggm.late_fusion import LateFusion
from cggm.passes import (
    PARTLY_SCALED,
    SCALED_TWICE,
    Captured,
    Factors,
    Recorder,
    ScaledGradient,
    Seen,
    SeenBackward,
    shared_paths,
)
from cggm.tensors import Features, Presence, map_tensors, without_subclass

# Hooks run eagerly between a compiled network's graphs: they must see every forward pass.
_outside_graphs: Callable[[Callable[..., Any]], Callable[..., Any]] = torch.compiler.disable


class Owner(Protocol):
    """What a binding calls: the balancer."""

    def fuse(self, name: str, features: Features) -> Features:
        """What the network gets in place of an encoder's output."""

    def before_step(self, optimizer: Optimizer | None) -> None:
        """Called before a bound parameter is updated, with the optimizer that does it."""

    def after_step(self) -> None:
        """Called after the update was really made."""

    def unbind(self) -> None:
        """Remove every hook."""


class Binding:
    """Hooks of one balancer on one network.

    Each encoder's output passes through an identity that multiplies its gradient by a factor set
    between the forward and the backward pass. By linearity that equals multiplying every parameter
    gradient of the encoder, without a pass over the parameters, before any clipping, and under any
    optimizer, gradient accumulation, loss scaling and DDP.

    Hooks are silent under ``torch.no_grad``, and when output layer and encoders are all in eval
    mode. A bound network can be copied and saved; its copy's hooks do nothing.

    Args:
        encoders: Modality name to encoder.
        output_layer: The network's last parametrized layer, linear or a 1x1 convolution, or
            :class:`cggm.late_fusion.LateFusion`.
        owner: What is called.
        decode: Features of all modalities to the network's prediction, where it can be had.

    Attributes:
        factors: What the encoders' gradients and updates are multiplied by.
        updates_scaled: Whether the method scales updates, so that a step may need what was before.

    Raises:
        ValueError: If a module cannot serve, naming it and the remedy.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        output_layer: nn.Module,
        owner: Owner,
        decode: Decode | None = None,
    ) -> None:
        check_encoders(encoders, output_layer)
        check_output_layer(output_layer, list(encoders))
        self.encoders = dict(encoders)
        self.output_layer = output_layer
        self.factors = Factors()
        self.updates_scaled = False
        self._owner = owner
        self._decoder = Decoder(decode, list(encoders.values()))
        self._autocast: tuple[str, torch.dtype] | None = None
        self._recorder = Recorder(list(encoders))
        self._unbalanced = Seen()
        self._paths_seen = False
        self.find_parameters()
        self._handles: list[RemovableHandle] = [
            encoder.register_forward_hook(_Hook(self, "_after_encoder", name), with_kwargs=True)
            for name, encoder in encoders.items()
        ]
        self._handles += [
            output_layer.register_forward_hook(_Hook(self, "_after_layer"), with_kwargs=True),
        ]
        _BINDINGS.add(self)

    def take_over(self) -> bool:
        """Let other balancers of these modules go, which would scale as well; whether some did."""
        own = set(map(id, self.modules))
        others = [b for b in _BINDINGS if b is not self and own & set(map(id, b.modules))]
        for other in others:
            other._owner.unbind()
        return bool(others)

    def shared_paths(self, loss: Tensor) -> list[str]:
        """A message for each encoder of whose gradient the factor scales less, or of others too.

        Args:
            loss: Task loss, with its graph; of the first one whose gradient is scaled.
        """
        if self._paths_seen or self.factors.gradient is None:
            return []
        self._paths_seen = True
        partly, twice = shared_paths(loss, self.factors, self.encoders)
        found = [PARTLY_SCALED.format(name=name) for name in partly]
        return found + [SCALED_TWICE.format(name=name) for name in twice]

    def find_parameters(self) -> None:
        """Look again for the modules' parameters, which may have been replaced since."""
        self._parameter_ids = {id(p) for module in self.modules for p in module.parameters()}

    @property
    def names(self) -> list[str]:
        """Modality names, in order."""
        return list(self.encoders)

    @property
    def device(self) -> torch.device:
        """Device of the encoders."""
        return next(next(iter(self.encoders.values())).parameters()).device

    @property
    def modules(self) -> list[nn.Module]:
        """Output layer and encoders."""
        return [self.output_layer, *self.encoders.values()]

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
        # some of the modules may be in eval mode while they train, for their BatchNorm's sake
        return torch.is_grad_enabled() and any(m.training for m in self.modules)

    @property
    def recomputing(self) -> bool:
        """Whether this is the recomputation of a checkpointed region, no new forward pass."""
        return _in_backward()

    def require_decode(self, method: str) -> None:
        """Refuse a network whose fusion cannot be run again."""
        self._decoder.require(method)

    def decode(self, features: Mapping[str, Features], **how: bool) -> Any:  # noqa: ANN401
        """The network's prediction from other features, see ``decode`` of its decoder.

        Where the network ran under autocast and the criterion does not, as under Accelerate, this
        pass does so, too, and returns at least float32.
        """
        if self._autocast is None or torch.is_autocast_enabled(self._autocast[0]):
            return self._decoder.decode(features, **how)
        with torch.autocast(*self._autocast):
            return map_tensors(_in_full, self._decoder.decode(features, **how))

    def on_output(self, network: nn.Module, function: Callable[[Any], Any]) -> RemovableHandle:
        """Pass the network's output through a function, in training only; removable alone."""
        hook = _Hook(self, "_after_network", function)
        self._handles.append(network.register_forward_hook(hook, with_kwargs=True))
        return self._handles[-1]

    def take(self, loss: Tensor | None = None, presence: Presence | None = None) -> Captured:
        """Hand over what the forward pass of a loss left, see ``take``."""
        self._unbalanced.backward = False
        return self._recorder.take(loss, presence)

    def unbalanced(self, loss: Tensor) -> Tensor:
        """The loss itself; an optimizer step after its backward pass is refused.

        A network in eval mode is not balanced. Whether it is being trained all the same is known
        once the optimizer steps.
        """
        if not (torch.is_grad_enabled() and loss.requires_grad):
            return loss
        noted: Tensor = SeenBackward.apply(loss, self._unbalanced)
        return noted

    def before_update(self, optimizer: Optimizer | None, *, closure: bool = False) -> None:
        """Prepare for an update of the parameters.

        Args:
            optimizer: What makes it; ``None`` for anything but a ``torch.optim.Optimizer``.
            closure: Whether the optimizer computes gradients itself.

        Raises:
            RuntimeError: If the loss of this step was computed in eval mode.
        """
        if not closure:
            self.before_step(optimizer)
        # a closure fills the factors, and the gradients, within the step
        if self.updates_scaled and (closure or self.factors.update is not None):
            held = self._parameter_ids if optimizer is None else set(map(id, _held_by(optimizer)))
            for encoder in self.encoders.values():
                owned = [p for p in encoder.parameters() if id(p) in held and p.requires_grad]
                moving = [p for p in owned if closure or p.grad is not None]
                self.factors.remember(moving)

    def before_step(self, optimizer: Optimizer | None) -> None:
        """Call the balancer once the gradients are there, in a closure's end where there is one.

        Args:
            optimizer: What is about to use them; ``None`` for anything but a
                ``torch.optim.Optimizer``.

        Raises:
            RuntimeError: If the loss of this step was computed in eval mode.
        """
        if self._unbalanced.backward:
            self._unbalanced.backward = False
            raise RuntimeError(
                "Expected the network in training mode while it trains, but its encoders and "
                "output layer were in eval mode when the balancer was called, so that this step "
                "is not balanced. Call `network.train()`, and `.eval()` on the BatchNorm and "
                "dropout layers alone where those are to stay frozen."
            )
        self._owner.before_step(optimizer)

    @torch.no_grad()
    def after_update(self, *, made: bool = True) -> None:
        """Scale the update, and call the balancer where the step was really made."""
        self.factors.scale_update()
        if made:
            self._owner.after_step()

    def remove(self) -> None:
        """Remove every hook."""
        _BINDINGS.discard(self)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _after_encoder(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Features,
    ) -> Features:
        if module is not self.encoders[name]:  # a shallow copy keeps hooks
            return output
        if not self.active:
            if module.training:
                self._recorder.note_without_graph(name)
            return output
        if output is None:
            self._recorder.note_absent(name)
            return output
        index, scaled = self.names.index(name), 0

        def scale(tensor: Tensor) -> Tensor:
            nonlocal scaled
            if not tensor.requires_grad:
                return tensor
            check_scalable(name, tensor)
            scaled += 1
            return ScaledGradient.apply(tensor, self.factors, index)  # type: ignore[no-any-return]

        result = map_tensors(scale, output)
        if not scaled:
            check_scaled(name, module, output)
        if not _in_backward():
            self._recorder.note_encoder(name, (args, kwargs), without_subclass(output))
        return self._owner.fuse(name, result)

    def _after_layer(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,  # noqa: ANN401
    ) -> None:
        if self._decoder.running or _in_backward() or not self.active:
            return
        if module is self.output_layer:
            taken = args[0] if args else next(iter(kwargs.values()))
            self._recorder.note_layer(taken, output)
            kind = self.device.type
            on = torch.is_autocast_enabled(kind)
            self._autocast = (kind, torch.get_autocast_dtype(kind)) if on else None

    def _after_network(self, function: Callable[[Any], Any], *call: Any) -> Any:  # noqa: ANN401
        return function(call[-1]) if self.active and not _in_backward() else call[-1]

    def owns(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer updates a parameter of an encoder or of the output layer."""
        return any(id(p) in self._parameter_ids for p in _held_by(optimizer))


def _in_full(tensor: Tensor) -> Tensor:
    known = tensor.is_floating_point()
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if known else tensor


def _before_optimizer(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    bindings = [b for b in _BINDINGS if b.owns(optimizer)]
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    for binding in bindings:
        binding.before_update(optimizer, closure=closure is not None)
    if closure is None or not bindings:
        return None

    def evaluated() -> Any:  # noqa: ANN401
        loss = closure()
        for binding in bindings:
            binding.before_step(optimizer)
        return loss

    return (args[0], evaluated, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}


def _after_optimizer(optimizer: Optimizer, *arguments: Any) -> None:  # noqa: ANN401
    for binding in [b for b in _BINDINGS if b.owns(optimizer)]:
        binding.after_update(made=not _was_skipped(optimizer))


# PyTorch calls these for every optimizer of the process, and holds them for good: they are two, and
# know bindings weakly, so that a network that nobody unbinds is freed all the same.
_BINDINGS: "weakref.WeakSet[Binding]" = weakref.WeakSet()
register_optimizer_step_pre_hook(_before_optimizer)
register_optimizer_step_post_hook(_after_optimizer)


class _Hook:
    """Calls a method of a binding; a copy of it, or a saved one, does nothing."""

    def __init__(self, binding: Binding, method: str, *first: Any) -> None:  # noqa: ANN401
        self._call = partial(getattr(binding, method), *first)

    @_outside_graphs
    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401
        return self._call(*arguments)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return InertHook, ()


class InertHook:
    """What is left of a hook in a copy of a bound network, or in a file of one."""

    def __call__(self, *arguments: Any) -> None:  # noqa: ANN401, D102
        return None


@contextmanager
def recorded(modules: Mapping[str, nn.Module], *, inputs: bool = False) -> Iterator[dict[str, Any]]:
    """What each module returns, by name, filled by every forward pass.

    Args:
        modules: By name, such as encoders by modality.
        inputs: Whether what each takes first is noted instead.
    """
    features: dict[str, Any] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Features) -> None:
            features[name] = without_subclass(args[0] if inputs else output)

        return hook

    handles = [e.register_forward_hook(hook_of(name)) for name, e in modules.items()]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def follow(
    balancer: Any,  # noqa: ANN401
    before: Callable[..., None],
    after: Callable[..., None],
    saving: Callable[..., None],
) -> list[RemovableHandle]:
    """Call functions around each call of a balancer, and before its state is taken.

    Args:
        balancer: The balancer.
        before: Called with it and its arguments.
        after: Called with it, its arguments and the loss that it returned.
        saving: Called with it, a prefix and a flag, as its ``state_dict`` begins.

    Returns:
        What removes them.
    """
    return [
        balancer.register_forward_pre_hook(before),
        balancer.register_forward_hook(after),
        balancer.register_state_dict_pre_hook(saving),
    ]


def _held_by(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _in_backward() -> bool:
    """Whether this is the recomputation of a checkpointed region, which is no new forward pass."""
    return torch._C._current_graph_task_id() != -1


def _was_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer was called by a GradScaler and skipped the step on the device."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)
