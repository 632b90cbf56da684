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

from cggm.distributed import broadcast_from_first, mean_over_ranks
from cggm.scores import Score, score_counts
from cggm.tensors import Features, map_tensors

Criterion = Callable[[Tensor, Any], Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]

default_optimizer: OptimizerFactory = partial(torch.optim.Adam, lr=5e-4)


@dataclass(frozen=True)
class HeadReadings:
    """What the heads say about one micro-batch.

    Attributes:
        losses: Task loss of each head, shape ``(M,)``.
        counts: Numerators and denominators of each head's score, shape ``(M, 2, K)``.
        gradients: Gradient of each head's last weight, mean over ranks, shape ``(M, C, D)``.
    """

    losses: Tensor
    counts: Tensor
    gradients: Tensor


class Heads(nn.ModuleDict):
    """One head per modality, trained beside the network by an optimizer of their own.

    Heads see detached features, so that the network's optimizer, schedule and clipping are
    untouched, and learn inside the criterion call, one after another, which keeps one head's
    activations in memory at a time. Half precision by float16 autocast is left to the network:
    without a loss scale of their own the heads run in float32 there.

    Args:
        heads: Modality name to module; each ends in an attribute ``output_layer`` of the network's
            last layer's shape.
        optimizer: Builds the optimizer from the heads' parameters.

    Raises:
        ValueError: If a head has no ``output_layer`` with a weight.
    """

    def __init__(
        self, heads: Mapping[str, nn.Module], optimizer: OptimizerFactory = default_optimizer
    ) -> None:
        super().__init__(dict(heads))
        for name, head in self.items():
            if not isinstance(getattr(getattr(head, "output_layer", None), "weight", None), Tensor):
                raise ValueError(
                    f"Expected head {name!r} to have an attribute `output_layer` with a weight, "
                    f"but {type(head).__name__} has none. Name its last layer `output_layer`."
                )
        self.optimizer = optimizer(list(self.parameters()))
        self._micro_batches = torch.zeros(())

    def output_weight(self, name: str) -> Tensor:
        """Weight of a head's last layer."""
        return _output_weight(self[name])

    def place(self, device: torch.device) -> None:
        """Move heads and their optimizer's state to a device; make all ranks start alike."""
        self.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        self._micro_batches = self._micro_batches.to(device)
        broadcast_from_first(self.parameters())

    def observe(
        self,
        features: Mapping[str, Features],
        target: Any,  # noqa: ANN401
        task_loss: Criterion,
        score: Score,
    ) -> HeadReadings:
        """Predict from each modality alone, and add to the heads' gradients.

        Args:
            features: Output of each encoder.
            target: What the task loss compares predictions with.
            task_loss: ``(prediction, target)`` to a scalar.
            score: See :func:`cggm.scores.score_counts`.

        Returns:
            Losses, score counts and last-layer gradients.
        """
        rows = [
            self._observe_one(head, features[name], target, task_loss, score)
            for name, head in self.items()
        ]
        losses, counts, gradients = (torch.stack(column) for column in zip(*rows, strict=True))
        self._micro_batches += 1
        (gradients,) = mean_over_ranks([gradients])
        return HeadReadings(losses, counts, gradients)

    def losses(self, features: Mapping[str, Features], target: Any, task_loss: Criterion) -> Tensor:  # noqa: ANN401
        """Loss of each head, ``(M,)``, differentiable in the features; heads are constants.

        One more pass through the heads, which leaves their gradients and batch statistics alone.

        Args:
            features: Output of each encoder, with its graph.
            target: What the task loss compares predictions with.
            task_loss: ``(prediction, target)`` to a scalar.
        """
        losses = []
        for name, head in self.items():
            constants = {key: p.detach() for key, p in head.named_parameters()}
            buffers = {key: b.clone() for key, b in head.named_buffers()}
            prediction = functional_call(head, constants | buffers, (features[name],))
            loss = task_loss(prediction, target)
            losses.append(loss.to(torch.promote_types(loss.dtype, torch.float32)))
        return torch.stack(losses)

    def step(self) -> None:
        """Let the heads' optimizer step by the mean gradient of the window and of all ranks."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, self._micro_batches)
        for gradient, mean in zip(gradients, mean_over_ranks(gradients), strict=True):
            gradient.copy_(mean)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._micro_batches.zero_()

    def keep(self, kept: Tensor | bool) -> None:
        """Forget the window's gradients unless ``kept``, without asking the device."""
        kept = torch.as_tensor(kept, device=self._micro_batches.device)
        for tensor in [*(p.grad for p in self.parameters()), self._micro_batches]:
            if tensor is not None:
                tensor.copy_(torch.where(kept, tensor, 0.0))

    def get_extra_state(self) -> dict[str, Any]:
        """State of the heads' optimizer, saved along with the heads."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.optimizer.load_state_dict(state)

    def _observe_one(
        self,
        head: nn.Module,
        features: Features,
        target: Any,  # noqa: ANN401
        task_loss: Criterion,
        score: Score,
    ) -> tuple[Tensor, Tensor, Tensor]:
        parameters = [p for p in head.parameters() if p.requires_grad]
        with _without_half(self._micro_batches.device.type) as in_full:
            prediction = head(map_tensors(lambda x: _detached(x, in_full), features))
            loss = task_loss(prediction, target)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        weight = _output_weight(head)
        last = None
        for parameter, gradient in zip(parameters, gradients, strict=True):
            last = gradient if parameter is weight else last
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if last is None:
            raise RuntimeError(
                f"Expected the loss of {type(head).__name__} to depend on the trainable weight of "
                "its `output_layer`, but it does not. Let it be the head's last layer."
            )
        counts = score_counts(score, prediction.detach(), target)
        return loss.detach().float(), counts, last.flatten(1).clone()


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


def _detached(tensor: Tensor, in_full: bool) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if in_full and tensor.dtype == torch.float16 else tensor
