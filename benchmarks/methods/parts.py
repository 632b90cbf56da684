"""What methods add to a step: the parts, measured on the network that is trained."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods.tasks import Task
from cggm import Balancer
from cggm.balancer import Step
from cggm.heads import Heads
from cggm.tensors import map_tensors


class Probe(Balancer):
    """Joint training that keeps what a method sees.

    Attributes:
        step: Of the last forward pass.
    """

    step: Step

    def loss(self, step: Step) -> Tensor:
        """Task loss."""
        self.step = step
        return step.loss


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of a piece of work, in which other processes' turns do not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


class Parts:
    """Measures every part on one network.

    Args:
        task: Whose network fuses features.
        late: The same with late fusion.
    """

    def __init__(self, task: Task, late: Task) -> None:
        self.task, self.late = task, late
        self.loss = task.parts["task_loss"]()
        self.score = task.parts["score"]()
        self.heads = Heads(task.parts["heads"](), task.parts["head_optimizer"]())

    def measure(self) -> dict[str, float]:
        """Seconds of each part."""
        with self._seen() as probe:
            parts = {
                "encoders backward": self._encoders_backward,
                "teachers": self._teachers,
                "fusion forward": self._fusion_forward,
                "fusion backward": self._fusion_backward,
                "heads": self._heads,
                "heads through": self._heads_through,
                "loss": self._loss,
                "features": self._features,
                "gradients": self._gradients,
                "update": self._update,
                "draws": self._draws,
            }
            seconds = {name: part(probe) for name, part in parts.items()}
        return seconds | {"branches backward": self._branches_backward()}

    @contextmanager
    def _seen(self) -> Iterator[Probe]:
        """A probe that saw a step, whose gradients are still there."""
        probe = Probe(self.loss)
        with self.task.bound(probe):
            self.task.step(probe)
            yield probe

    def _encoders_backward(self, probe: Probe) -> float:
        encoders = probe.binding.encoders
        outputs: list[Tensor] = []
        for name, encoder in encoders.items():
            args, kwargs = probe.step.inputs[name]
            map_tensors(lambda x: _noted(x, outputs), encoder(*args, **kwargs))
        parameters = [p for e in encoders.values() for p in e.parameters()]
        ones = [torch.ones_like(x) for x in outputs]
        grad = torch.autograd.grad
        return seconds_of(lambda: grad(outputs, parameters, ones, allow_unused=True))

    def _teachers(self, probe: Probe) -> float:
        @torch.no_grad()
        def teach() -> None:
            for name, encoder in probe.binding.encoders.items():
                args, kwargs = probe.step.inputs[name]
                encoder(*args, **kwargs)

        for encoder in probe.binding.encoders.values():
            encoder.eval()
        seconds = seconds_of(teach)
        for encoder in probe.binding.encoders.values():
            encoder.train()
        return seconds

    def _fusion_forward(self, probe: Probe) -> float:
        features, _ = _fresh(probe.step.features)
        return seconds_of(lambda: probe.binding.decode(features))

    def _fusion_backward(self, probe: Probe) -> float:
        features, leaves = _fresh(probe.step.features)
        named = self.task.network.named_parameters()
        inputs = leaves + [p for name, p in named if not name.startswith("encoders.")]
        loss = self.loss(probe.binding.decode(features), probe.step.target)
        return seconds_of(lambda: torch.autograd.grad(loss, inputs, allow_unused=True))

    def _heads(self, probe: Probe) -> float:
        def learn() -> None:
            self.heads.observe(probe.step.features, probe.step.target, self.loss, self.score)
            self.heads.step()

        return seconds_of(learn)

    def _heads_through(self, probe: Probe) -> float:
        features, leaves = _fresh(probe.step.features)

        def through() -> None:
            losses = self.heads.losses(features, probe.step.target, self.loss)
            torch.autograd.grad(losses.sum(), leaves, allow_unused=True)

        return seconds_of(through)

    def _loss(self, probe: Probe) -> float:
        prediction, (leaf,) = _fresh(probe.step.prediction)
        loss, target = self.loss, probe.step.target
        return seconds_of(lambda: torch.autograd.grad(loss(prediction, target), leaf))

    def _features(self, probe: Probe) -> float:
        _, leaves = _fresh(probe.step.features)
        factor = torch.ones((), requires_grad=True)
        ones = [torch.ones_like(x) for x in leaves]
        grad = torch.autograd.grad
        return seconds_of(lambda: grad([x * factor for x in leaves], leaves, ones))

    def _gradients(self, probe: Probe) -> float:
        gradients = _gradients_of(probe)
        return seconds_of(lambda: [gradient * 1.0 for gradient in gradients])

    def _update(self, probe: Probe) -> float:
        data = [x.clone() for x in _gradients_of(probe)]

        def scale() -> None:
            before = [x.clone() for x in data]
            torch._foreach_sub_(data, before)
            torch._foreach_mul_(data, torch.ones(()))
            torch._foreach_add_(data, before)

        return seconds_of(scale)

    def _draws(self, probe: Probe) -> float:
        shapes = [x.shape for x in _gradients_of(probe) if x.ndim >= 2]
        return seconds_of(lambda: [torch.randn(shape) for shape in shapes])

    def _branches_backward(self) -> float:
        inputs, target = self.late.batch
        loss = self.loss(self.late.network(inputs), target)
        parameters = list(self.late.network.parameters())
        return seconds_of(lambda: torch.autograd.grad(loss, parameters, allow_unused=True))


def _noted(tensor: Tensor, outputs: list[Tensor]) -> Tensor:
    if tensor.requires_grad:
        outputs.append(tensor)
    return tensor


def _fresh(features: Any) -> tuple[Any, list[Tensor]]:  # noqa: ANN401
    """Features without their graph, and the leaves in them that take a gradient."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1]

    return map_tensors(leaf, features), leaves


def _gradients_of(probe: Probe) -> list[Tensor]:
    encoders = probe.binding.encoders.values()
    return [p.grad for e in encoders for p in e.parameters() if p.grad is not None]
