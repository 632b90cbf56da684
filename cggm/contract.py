"""Modules that a balancer is bound to: what they must be, and what is asked of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from cggm.distributed import world_size
from cggm.functional import graph_nodes
from cggm.late_fusion import LateFusion
from cggm.tensors import Features, kind_of, map_tensors, tensors_in, without_subclass

Decode = Callable[[Mapping[str, Features]], Any]
"""Features by modality to a network's prediction."""

_LAST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last_weight(layer: nn.Module) -> Tensor:
    """Weight of a linear or convolutional layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def unwrap(network: nn.Module) -> nn.Module:
    """The user's own module inside DDP and ``torch.compile`` wrappers.

    Raises:
        ValueError: If the wrapper replicates or shards modules, so that hooks would be lost.
    """
    while True:
        if isinstance(network, DataParallel):
            raise ValueError(
                "Expected one network per process, but got DataParallel, which runs replicas "
                "without their hooks. Use DistributedDataParallel."
            )
        inner = getattr(network, "_orig_mod", None)
        if inner is None and isinstance(network, DistributedDataParallel):
            inner = network.module
        if inner is None:
            return network
        network = inner


def check_encoders(encoders: Mapping[str, nn.Module], output_layer: nn.Module) -> None:
    """Refuse encoders that cannot be scaled one by one.

    Raises:
        ValueError: If there is none, or one without trainable parameters, or a shared parameter.
    """
    if not encoders:
        raise ValueError("Expected at least one encoder, but got none. Name them by modality.")
    owner: dict[int, str] = {}
    for name, module in {**encoders, "the output layer": output_layer}.items():
        trainable = [p for p in module.parameters() if p.requires_grad]
        if not trainable and module is not output_layer:
            raise ValueError(
                f"Expected encoder {name!r} to have trainable parameters, but it has none. "
                "Unfreeze it, or leave it out of the encoders."
            )
        for parameter in module.parameters():
            if id(parameter) in owner:
                raise ValueError(
                    f"Expected encoders to share no parameter, but one of shape "
                    f"{tuple(parameter.shape)} belongs to {owner[id(parameter)]!r} and {name!r}. "
                    "Give each its own, or move what is shared out of the encoders."
                )
        owner |= {id(parameter): name for parameter in module.parameters()}


def check_output_layer(layer: nn.Module, names: list[str]) -> None:
    """Refuse a last layer that is neither linear, nor a 1x1 convolution, nor a late fusion.

    Args:
        layer: The output layer.
        names: Modalities, in order.

    Raises:
        ValueError: If it cannot serve.
    """
    if isinstance(layer, LateFusion):
        if list(layer) != names:
            raise ValueError(
                f"Expected a late fusion of the encoders {names}, but got one of {list(layer)}. "
                "Name its heads like the encoders, in their order."
            )
        return
    weight = getattr(layer, "weight", None)
    remedy = "Give the last layer with parameters; interpolation and softmax may follow it."
    kind, module = type(layer).__name__, type(layer).__module__
    if not module.startswith("torch."):  # others have a Linear of their own, such as an adapter
        kind = f"{module}.{kind}"
    if not isinstance(layer, _LAST_LAYERS) or not isinstance(weight, Tensor):
        raise ValueError(
            "Expected `output_layer` to be a linear or convolutional layer, "
            f"but got {kind}. {remedy}"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"Expected an initialized `output_layer`, but got {layer}. Run it once.")
    if isinstance(layer, nn.Linear):
        return
    if weight[0, 0].numel() != 1 or layer.groups != 1 or set(layer.stride) != {1}:
        raise ValueError(
            f"Expected a convolutional `output_layer` of kernel 1, stride 1 and one group, "
            f"but got {layer}. {remedy}"
        )


def modules_of(
    network: nn.Module | None,
    encoders: Mapping[str, nn.Module] | Sequence[nn.Module] | None,
    output_layer: nn.Module | None,
    decode: Decode | None,
) -> tuple[dict[str, nn.Module], nn.Module, Decode | None]:
    """Encoders by modality, output layer and fusion, as given or as a network's attributes.

    Args:
        network: The network, which may be wrapped, or ``None`` where the others are given.
        encoders: By modality, or a sequence, which is named "0", "1" and so on.
        output_layer: The last layer with parameters.
        decode: The fusion, where there is one to be called.

    Raises:
        ValueError: If something is missing.
    """
    if network is not None:
        inner = unwrap(network)
        encoders = encoders or _attribute(inner, "encoders")
        output_layer = output_layer or _attribute(inner, "output_layer")
        decode = decode or getattr(inner, "decode", None)
    if encoders is None or output_layer is None:
        raise ValueError("Expected a network, or both `encoders` and `output_layer`.")
    if isinstance(encoders, Sequence | nn.ModuleList):
        encoders = {str(index): module for index, module in enumerate(encoders)}
    if not isinstance(encoders, Mapping | nn.ModuleDict):
        raise ValueError(
            "Expected `encoders` to map modalities to modules, as an nn.ModuleDict does, but got "
            f"{type(encoders).__name__}."
        )
    return {name: unwrap(module) for name, module in encoders.items()}, output_layer, decode


def check_heads(heads: Any, names: Sequence[str], output_layer: nn.Module, method: str) -> None:  # noqa: ANN401
    """Refuse heads that do not fit the encoders and the output layer.

    Args:
        heads: Modality name to head, with an ``output_weight``, see :class:`cggm.heads.Heads`.
        names: Modalities, in order.
        output_layer: The network's output layer.
        method: Name of the method that has them, for the message.

    Raises:
        ValueError: If names, order or a shape differ, or if the network fuses late.
    """
    if list(heads) != list(names):
        raise ValueError(
            f"Expected one head per encoder, {list(names)}, but got {list(heads)}. "
            "Give heads by the encoders' names, in their order."
        )
    if isinstance(output_layer, LateFusion):
        raise ValueError(
            f"Expected a network that fuses features, but its modalities have heads of their "
            f"own, and {method} compares one output layer with heads. "
            "Use a network with one output layer."
        )
    expected = last_weight(output_layer).shape
    for name in heads:
        found = heads.output_weight(name).shape
        if found != expected:
            raise ValueError(
                f"Expected the output layer of head {name!r} to have a weight of shape "
                f"{tuple(expected)} like the network's, but got {tuple(found)}."
            )


def check_late_fusion(output_layer: nn.Module, method: str) -> None:
    """Refuse a network that does not predict from each modality alone.

    Args:
        output_layer: The network's output layer.
        method: Name of the method that needs it, for the message.

    Raises:
        ValueError: If the output layer is no :class:`cggm.late_fusion.LateFusion`.
    """
    if not isinstance(output_layer, LateFusion):
        raise ValueError(
            f"Expected a late-fusion network, because {method} trains a prediction of each "
            f"modality, but the output layer is {type(output_layer).__name__}. "
            "Use a network whose `output_layer` is a `cggm.late_fusion.LateFusion`."
        )


def check_scaled(name: str, encoder: nn.Module, output: Features) -> None:
    """Refuse an output in which nothing could be scaled, unless its encoder is frozen.

    Args:
        name: Modality.
        encoder: The encoder that returned it.
        output: What it returned.

    Raises:
        ValueError: If the encoder has trainable parameters.
    """
    if any(p.requires_grad for p in encoder.parameters()):
        found = [kind_of(tensor) for tensor in tensors_in(output)] or ["no tensor in it"]
        raise ValueError(
            f"Expected encoder {name!r} to return tensors that depend on its parameters, so that "
            f"their gradient can be scaled, but got {kind_of(output)} with {', '.join(found)}, "
            "none of which has a gradient. Return tensors, or containers or dataclasses of "
            "tensors, or freeze the encoder's parameters."
        )


def check_scalable(name: str, tensor: Tensor) -> None:
    """Refuse a tensor on which no gradient can be scaled.

    Args:
        name: Modality.
        tensor: Part of what its encoder returned.

    Raises:
        ValueError: If it is of the old nested kind, or traced by a transform of ``torch.func``.
    """
    if tensor.is_nested and tensor.layout is torch.strided:
        raise ValueError(
            f"Expected encoder {name!r} to return tensors, but got a nested one of the strided "
            "layout, which PyTorch cannot pass through a function. Use layout=torch.jagged."
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise ValueError(
            f"Expected encoder {name!r} to run outside of the transforms of torch.func (grad, "
            "vmap), because its gradient is scaled in an ordinary backward pass. Call "
            "`.backward()` or `torch.autograd.grad`, and give encoders whole batches."
        )


def check_single(prediction: Any, method: str) -> None:  # noqa: ANN401
    """Refuse several predictions, such as those of deep supervision, for a method that needs one.

    Raises:
        ValueError: If it is no tensor.
    """
    if not isinstance(prediction, Tensor):
        raise ValueError(
            f"Expected the network to return one tensor, because {method} compares predictions, "
            f"but got {kind_of(prediction)}. Choose another method."
        )


def check_scalar(loss: Any, owner: str) -> None:  # noqa: ANN401
    """Refuse a loss that is no scalar tensor.

    Args:
        loss: What a task loss returned.
        owner: Whose prediction it judged, for the message.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            f"Expected `task_loss` to return a scalar tensor for {owner}, but got "
            f"{kind_of(loss)}. Use a loss that averages over samples, such as `reduction='mean'`."
        )


def check_graph(loss: Tensor, owner: str) -> None:
    """Refuse a loss that nothing can be learnt from.

    Args:
        loss: What a task loss returned.
        owner: Whose prediction it judged, for the message.

    Raises:
        ValueError: If it has no graph.
    """
    if not loss.requires_grad:
        raise ValueError(
            f"Expected a loss with a gradient for {owner}, but got one without. Compute it from "
            "the prediction itself, without `detach`, `argmax`, `item` or `torch.no_grad`."
        )


def check_ranks(loss: Tensor, method: str) -> None:
    """Refuse DDP's static graph, for a method that takes gradients in the criterion.

    Such a gradient passes DDP's mark for the end of the first backward pass, so that the step's own
    gradients would not be exchanged, and replicas part.

    Args:
        loss: Task loss, with its graph.
        method: Name of the method, for the message.

    Raises:
        ValueError: If the network is wrapped so.
    """
    for node in graph_nodes(loss) if world_size() > 1 else ():
        network = node.ddp_weakref() if hasattr(node, "ddp_weakref") else None
        if getattr(network, "static_graph", False):
            raise ValueError(
                f"Expected DistributedDataParallel with static_graph=False, because {method} takes "
                "gradients before the backward pass, but got static_graph=True. Leave it out; "
                "find_unused_parameters=True serves a network that skips modules."
            )


def gradients_kept(modules: Sequence[nn.Module]) -> Tensor | bool:
    """Whether the gradients accumulated so far are still there, as a device tensor.

    They are gone once ``zero_grad`` opened a new window, and not worth keeping once they are not
    finite: both follow a step that a gradient scaler skipped.

    Args:
        modules: The first trainable parameter of theirs is looked at.
    """
    parameter = next(p for m in modules for p in m.parameters() if p.requires_grad)
    if parameter.grad is None:
        return False
    total: Tensor = without_subclass(parameter.grad).abs().sum()
    return torch.isfinite(total) & (total > 0)


def gradient_norms(modules: Iterable[nn.Module], optimizer: Optimizer | None) -> Tensor:
    """Euclidean norm of each module's parameter gradients, without a loss scale.

    Args:
        modules: The M modules.
        optimizer: May hold a loss scale, as a fused one does under a gradient scaler.

    Returns:
        Shape ``(M,)``, float32, on the device of the first.
    """
    gradients = [[p.grad for p in m.parameters() if p.grad is not None] for m in modules]
    norms = [torch.nn.utils.get_total_norm(own) for own in gradients]
    scale = getattr(optimizer, "grad_scale", None)
    full = [without_subclass(norm).float() for norm in norms]
    stacked = torch.stack([norm.to(full[0].device) for norm in full])
    return stacked if scale is None else stacked / scale


class Decoder:
    """A network's fusion, which can be run once more, on other features.

    Args:
        decode: Features of all modalities to the network's prediction, where it can be had.
        encoders: Modules that are no part of the fusion.

    Attributes:
        running: Whether such a pass is under way.
    """

    def __init__(self, decode: Decode | None, encoders: Sequence[nn.Module]) -> None:
        self.running = False
        self._decode = decode
        self._encoders = set(encoders)

    @property
    def _owner(self) -> nn.Module | None:
        """The module that ``decode`` is, or is a method of."""
        owner = getattr(self._decode, "__self__", self._decode)
        return owner if isinstance(owner, nn.Module) else None

    def require(self, method: str) -> None:
        """Refuse a network whose fusion cannot be run again.

        Args:
            method: Name of the method that needs it, for the message.

        Raises:
            ValueError: If there is no ``decode``, or one whose modules cannot be found.
        """
        if self._decode is None:
            raise ValueError(
                f"Expected `decode`, with which {method} runs the fusion on other features, but "
                "got none. Give the network a method `decode(features)` that takes what its "
                "encoders return by modality, or pass `decode=` to `bind`."
            )
        if self._owner is None:
            raise ValueError(
                f"Expected `decode` to be a module or a method of one, because {method} sets the "
                "mode of its modules and keeps their running statistics, but got "
                f"{type(self._decode).__name__}. Pass a bound method such as `network.decode`."
            )

    def decode(
        self, features: Mapping[str, Features], *, training: bool = True, constant: bool = False
    ) -> Any:  # noqa: ANN401
        """The network's prediction from other features: one more pass through its fusion.

        It has gradients and leaves no trace: running statistics, such as BatchNorm's, move by the
        network's own forward pass alone.

        Args:
            features: Modality to features like those that its encoder returns.
            training: Whether modules keep the mode they are in; otherwise the pass runs in eval
                mode, without dropout and by running statistics.
            constant: Whether the fusion's parameters get no gradient from this pass.
        """
        assert self._decode is not None
        assert self._owner is not None
        modules = self._owner.named_modules(memo=set(self._encoders))
        self.running = True
        try:
            with _untouched([module for _, module in modules], training, constant):
                return without_subclass(self._decode(features))
        finally:
            self.running = False


@contextmanager
def _untouched(modules: list[nn.Module], training: bool, constant: bool) -> Iterator[None]:
    """Run modules in their mode or in eval mode, and give them back their mode and tensors."""
    kept = ("training", "_buffers", "_parameters", "_flat_weights")  # the last of recurrent layers
    before = [
        (module, {k: vars(module)[k] for k in kept if k in vars(module)}) for module in modules
    ]
    try:
        for module, own in before:
            module.training = own["training"] and training
            if module.training:
                # copies take the updates: writing old values back would upset a later backward
                module._buffers = map_tensors(torch.clone, own["_buffers"])
            if constant:
                tensors = {key: own[key] for key in ("_parameters", "_flat_weights") if key in own}
                vars(module).update(map_tensors(torch.Tensor.detach, tensors))
        yield
    finally:
        for module, own in before:
            vars(module).update(own)


def _attribute(network: nn.Module, name: str) -> Any:  # noqa: ANN401
    value = getattr(network, name, None)
    if value is None:
        raise ValueError(
            f"Expected {type(network).__name__} to have an attribute `{name}`, but it has none. "
            "Pass `encoders=` and `output_layer=`."
        )
    return value
