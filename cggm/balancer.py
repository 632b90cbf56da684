"""The contract of a balancing method, and joint training, which balances nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from cggm.binding import Binding, Callbacks, Decode, Inputs
from cggm.contract import unwrap
from cggm.heads import Criterion, Heads
from cggm.tensors import Features, plain


class Clock(nn.Module):
    """Epoch and optimizer steps of a balancer, saved and restored with it.

    Attributes:
        epoch: The epoch under way, counted from 1; 0 where none was started.
        steps: Optimizer steps made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.steps = 0

    @property
    def current(self) -> int:
        """The epoch under way, the first one in a loop that starts none."""
        return max(self.epoch, 1)

    def get_extra_state(self) -> dict[str, int]:
        """Both numbers."""
        return {"epoch": self.epoch, "steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.epoch, self.steps = state["epoch"], state["steps"]


@dataclass(frozen=True)
class Step:
    """One training forward pass, as a method sees it.

    Attributes:
        inputs: Positional and keyword arguments of each encoder by modality.
        features: Output of each encoder by modality, with its graph, as it was before ``fuse``.
        prediction: The network's prediction, ``(B, ...)``.
        target: What the task loss compares it with.
        loss: Task loss of the prediction, a scalar.
        layer_input: Input of the output layer, ``(B, D, *S)`` or ``(*S, D)``.
        layer_output: Output of the output layer, ``(B, C, *S)`` or ``(*S, C)``.
        unimodal: Prediction of each modality alone by a late-fusion network's own heads; empty for
            any other network. Where it is not empty, the two attributes above are empty tensors.
    """

    inputs: Mapping[str, Inputs]
    features: Mapping[str, Features]
    prediction: Tensor
    target: Any
    loss: Tensor
    layer_input: Tensor
    layer_output: Tensor
    unimodal: Mapping[str, Tensor]


class Balancer(nn.Module):
    """A criterion with memory; this base class is joint training.

    Bound to a network, it is called as ``loss = balancer(prediction, target)`` and returns what is
    back-propagated. A method overrides ``prepare``, ``fuse``, ``identify``, ``loss``, ``scales``,
    ``update_scales``, ``edit_gradients``, ``commit``, ``restart``, ``start_epoch`` or
    ``end_epoch``, and keeps what it remembers in buffers.

    In eval mode and under ``torch.no_grad`` the call gives the task loss.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.

    Attributes:
        readings: What the method measured in the last call, by name: device tensors, one value per
            modality. Empty for joint training.
        calls: Training calls since the balancer was bound.
        measure_norms: Whether to measure ``norms`` when the optimizer steps, which costs a pass
            over the encoders' gradients.
        clock: Epoch and optimizer steps so far.
        norms: Euclidean norm of each encoder's gradient at the last such step, ``(M,)``.
    """

    heads: Heads | None

    def __init__(self, task_loss: Criterion) -> None:
        super().__init__()
        self.task_loss = task_loss
        self.heads = None
        self.clock = Clock()
        self.readings: dict[str, Tensor] = {}
        self.calls = 0
        self.measure_norms = False
        self.norms: Tensor | None = None
        self._micro_batches = 0
        self._binding: Binding | None = None

    @property
    def binding(self) -> Binding:
        """The hooks on the network.

        Raises:
            RuntimeError: If the balancer is not bound.
        """
        if self._binding is None:
            raise RuntimeError(
                f"Expected {type(self).__name__} to be bound to a network, but it is not. "
                "Call `bind(network)`, or attach a BalanceHandler."
            )
        return self._binding

    @property
    def micro_batches(self) -> int:
        """Training calls since the optimizer last stepped."""
        return self._micro_batches

    @property
    def bound(self) -> bool:
        """Whether the balancer is bound to a network."""
        return self._binding is not None

    def bind(
        self,
        network: nn.Module | None = None,
        *,
        encoders: Mapping[str, nn.Module] | None = None,
        output_layer: nn.Module | None = None,
        decode: Decode | None = None,
    ) -> Self:
        """Tie this balancer to a network's modules.

        Heads, if any, move to the network's device. Bind before the first call of a compiled
        network, and before loading a state of this balancer.

        Args:
            network: Has ``encoders: nn.ModuleDict`` and ``output_layer``, and ``decode`` where a
                method asks for it; may be wrapped by DDP or ``torch.compile``.
            encoders: Modality name to encoder, for any other network.
            output_layer: Its last parametrized layer, linear or a 1x1 convolution.
            decode: What its encoders return, by modality, to its prediction.

        Returns:
            This balancer.

        Raises:
            ValueError: If a module cannot serve, or if heads and encoders do not match.
            RuntimeError: If the balancer is bound already.
        """
        if self._binding is not None:
            raise RuntimeError("Expected an unbound balancer, but it is bound. Call `unbind()`.")
        if network is not None:
            inner = unwrap(network)
            encoders = encoders or _attribute(inner, "encoders")
            output_layer = output_layer or _attribute(inner, "output_layer")
            decode = decode or getattr(inner, "decode", None)
        if encoders is None or output_layer is None:
            raise ValueError("Expected a network, or both `encoders` and `output_layer`.")
        encoders = {name: unwrap(module) for name, module in encoders.items()}
        callbacks = Callbacks(self.fuse, self._before_step, self._after_step)
        binding = Binding(encoders, output_layer, callbacks, decode)
        try:
            self._check_heads(binding)
            self.prepare(binding)
        except ValueError:
            binding.remove()
            raise
        self._binding = binding
        self.calls = 0
        device = self._binding.device
        self.to(device)
        if self.heads is not None:
            self.heads.place(device)
        return self

    def unbind(self) -> None:
        """Remove every hook; the state stays."""
        if self._binding is not None:
            self._binding.remove()
        self._binding = None

    def forward(self, prediction: Tensor, target: Any, loss: Tensor | None = None) -> Tensor:  # noqa: ANN401
        """Loss to back-propagate.

        Args:
            prediction: The network's prediction from the forward pass just made.
            target: What the task loss compares it with.
            loss: Task loss of the prediction where the caller has computed it.

        Returns:
            A scalar.
        """
        prediction, target = plain(prediction), plain(target)
        if loss is None:
            loss = self.task_loss(prediction, target)
        if not self.binding.active:
            return loss
        if self._micro_batches:
            self.restart(self.binding.window_kept())
        self.calls += 1
        self._micro_batches += 1
        step = self._step(prediction, target, loss)
        total = self.loss(step)
        self.binding.scales = self.scales(step)
        self.binding.update_scales = self.update_scales(step)
        return total

    def prepare(self, binding: Binding) -> None:
        """Look at the modules while binding; a ``ValueError`` refuses them and leaves no trace."""

    def identify(self, samples: Tensor) -> None:
        """Positions of the batch's samples in the training data, ``(B,)``, before the criterion.

        Called by loops, see :class:`cggm.BalanceHandler`; only a method that remembers samples
        needs it.
        """

    def fuse(self, name: str, features: Features) -> Features:
        """What the network gets in place of an encoder's output, in training only.

        Called as each encoder returns; while a checkpointed region is recomputed it has to repeat
        itself, see ``binding.recomputing``.
        """
        return features

    def loss(self, step: Step) -> Tensor:
        """What is back-propagated, from one forward pass."""
        return step.loss

    def scales(self, step: Step) -> Tensor | None:
        """Factor of each encoder's gradient, ``(M,)``, or ``None`` for none; called after loss."""
        return None

    def update_scales(self, step: Step) -> Tensor | None:
        """Factor of each encoder's parameter update, ``(M,)``, or ``None`` for none."""
        return None

    def edit_gradients(self) -> None:
        """Called before the optimizer steps, on the gradients that it will use."""

    def commit(self) -> None:
        """Move the state; called once the optimizer really stepped."""

    def restart(self, kept: Tensor | bool) -> None:
        """Forget what the window gathered unless ``kept``, without asking the device."""

    def abandon(self) -> None:
        """Forget the window: its step is not made, and the next call opens a new one."""
        self.restart(False)
        self._micro_batches = 0

    def start_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch, counted from 1; an override calls this one, too."""
        self.clock.epoch = epoch

    def end_epoch(self, epoch: int) -> None:
        """Called at the end of each epoch."""

    def _step(self, prediction: Tensor, target: Any, loss: Tensor) -> Step:  # noqa: ANN401
        captured = self.binding.take()
        layer, unimodal = (captured.layer_input, captured.layer_output), {}
        if self.binding.late_fusion:
            unimodal = {name: plain(part) for name, part in captured.layer_output.items()}
            layer = (prediction.new_empty(0), prediction.new_empty(0))
        return Step(captured.inputs, captured.features, prediction, target, loss, *layer, unimodal)

    def _before_step(self, optimizer: Optimizer) -> None:
        if self.measure_norms:
            self.norms = self.binding.gradient_norms(optimizer)
        if self._micro_batches:
            self.edit_gradients()

    def _after_step(self) -> None:
        if self._micro_batches:
            self.commit()
            self.clock.steps += 1
        self._micro_batches = 0

    def _check_heads(self, binding: Binding) -> None:
        if self.heads is None:
            return
        if list(self.heads) != binding.names:
            raise ValueError(
                f"Expected one head per encoder, {binding.names}, but got {list(self.heads)}. "
                "Give heads by the encoders' names, in their order."
            )
        if binding.late_fusion:
            raise ValueError(
                f"Expected a network that fuses features, but its modalities have heads of their "
                f"own, and {type(self).__name__} compares one output layer with heads. "
                "Use a network with one output layer."
            )
        expected = binding.output_weight.shape
        for name in self.heads:
            found = self.heads.output_weight(name).shape
            if found != expected:
                raise ValueError(
                    f"Expected the output layer of head {name!r} to have a weight of shape "
                    f"{tuple(expected)} like the network's, but got {tuple(found)}."
                )


def _attribute(network: nn.Module, name: str) -> Any:  # noqa: ANN401
    value = getattr(network, name, None)
    if value is None:
        raise ValueError(
            f"Expected {type(network).__name__} to have an attribute `{name}`, but it has none. "
            "Pass `encoders=` and `output_layer=`."
        )
    return value
