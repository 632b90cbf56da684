"""Several methods at once, in an order, on one network."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.heads import Heads
from cggm.passes import Step
from cggm.tensors import Features


class Chain(Balancer):
    """Methods that balance one network together: ``Chain(ModalityDropout(...), CGGM(...))``.

    ========= ======================================================================================
    features  pass through each ``fuse`` in order; heads, and methods that decode again, see what
              the encoders returned, before any of them
    losses    the task loss once, and what each method adds to it; a method that puts another loss
              in its place (``replaces_loss``: AGM, OPM, ReconBoost and others) does so for the
              chain, and there can be one
    factors   of gradients and of updates multiply
    gradients are edited in order, so that noise before MMPareto is combined, and after it is not
    heads     are shared where they judge the same modalities: those of the first method that has
              some learn, by its optimizer, and the others look on
    states    nest, under ``methods.0`` and so on
    readings  of one name belong to the first method that gives it; those of a later one bear its
              name, ``term_cggm``
    ========= ======================================================================================

    A chain of one method is that method. The order matters where two act on the same thing: dropout
    in front of Greedy's means is in them. A chain serves what all of its methods serve.

    Args:
        methods: Not bound; two and more of one class are possible.

    Raises:
        ValueError: If there is no method, one is a chain or bound, or two replace the loss; in
            ``bind``, what a method refuses.
    """

    def __init__(self, *methods: Balancer) -> None:
        if not methods or any(isinstance(m, Chain) or m.bound for m in methods):
            raise ValueError(
                "Expected one and more methods that are neither bound nor chains, but got "
                f"{[type(m).__name__ for m in methods]}. Build them anew, in one chain."
            )
        replacing = [type(m).__name__ for m in methods if m.replaces_loss]
        if len(replacing) > 1:
            raise ValueError(
                "Expected at most one method that puts its own loss in place of the task loss, but "
                f"got {' and '.join(replacing)}. Leave out all but one."
            )
        super().__init__(methods[0].task_loss)
        self.methods = nn.ModuleList(methods)
        _share_heads(methods)

    @property
    def parts(self) -> list[Balancer]:
        """The methods, in order."""
        return list(self.methods)  # type: ignore[arg-type]

    @property
    def serves_absence(self) -> bool:  # type: ignore[override]
        """Whether all methods can leave out a modality that samples lack."""
        return all(m.serves_absence for m in self.parts)

    def join(self, binding: Binding) -> None:
        """Let every method take part; the heads that learn become those of the chain."""
        for method in self.parts:
            method.join(binding)
        self.heads = next((m.heads for m in self.parts if m.heads is not None), None)
        super().join(binding)

    def leave(self) -> None:
        """Let every method leave."""
        super().leave()
        for method in self.parts:
            method.leave()

    def identify(self, samples: Tensor) -> None:
        """Positions of the batch's samples, for methods that remember them."""
        for method in self.parts:
            method.identify(samples)

    def present(self, masks: Mapping[str, Tensor | bool]) -> None:
        """Say which samples of the coming batch have which modality."""
        super().present(masks)
        for method in self.parts:
            method.present(masks)

    def fuse(self, name: str, features: Features) -> Features:
        """What the network gets after all methods."""
        for method in self.parts:
            features = method.fuse(name, features)
        return features

    def loss(self, step: Step) -> Tensor:
        """Task loss, and what the methods add to it."""
        losses = [method.take_part(step) for method in self.parts]
        changed = [loss for loss in losses if loss is not step.loss]
        self.readings = self._readings()
        if not changed:
            return step.loss
        total = changed[0]
        for loss in changed[1:]:
            total = total + (loss - step.loss)
        return total

    def scales(self, step: Step) -> Tensor | None:
        """Product of the methods' factors."""
        return _product([method.scales(step) for method in self.parts])

    def update_scales(self, step: Step) -> Tensor | None:
        """Product of the methods' factors of the update."""
        return _product([method.update_scales(step) for method in self.parts])

    def finish_gradients(self) -> None:
        """Let the methods edit the gradients now, in order."""
        for method in self.parts:
            method.finish_gradients()

    def abandon(self) -> None:
        """Forget the window of every method."""
        for method in self.parts:
            method.abandon()
        super().abandon()

    def start_epoch(self, epoch: int) -> None:
        """Announce an epoch to every method."""
        super().start_epoch(epoch)
        for method in self.parts:
            method.start_epoch(epoch)

    def end_epoch(self, epoch: int) -> None:
        """Announce the end of an epoch to every method."""
        for method in self.parts:
            method.end_epoch(epoch)

    def before_step(self, optimizer: Optimizer | None) -> None:
        """Let the methods edit the gradients, in order, and measure what comes of it."""
        for method in self.parts:
            method.before_step(optimizer)
        super().before_step(optimizer)

    def after_step(self) -> None:
        """Move the state of every method."""
        for method in self.parts:
            method.after_step()
        super().after_step()

    def _keep_window(self, kept: Tensor | bool) -> None:
        super()._keep_window(kept)
        for method in self.parts:
            method._keep_window(kept)

    def _readings(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for method in self.parts:
            own = type(method).__name__.lower()
            for name, value in method.readings.items():
                found[f"{name}_{own}" if name in found else name] = value
        return found


class _Idle(SGD):
    """An optimizer of heads that another method trains."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401
        """Leave the parameters as they are."""


def _share_heads(methods: tuple[Balancer, ...]) -> None:
    """Let heads of later methods be the first one's modules, which learn once."""
    owners = [m for m in methods if m.heads is not None]
    for method in owners[1:]:
        first = owners[0].heads
        assert first is not None
        assert method.heads is not None
        if list(method.heads) == list(first):
            modules = dict(first.items())
            method.heads = Heads(modules, lambda parameters: _Idle(parameters, lr=0.0))


def _product(factors: list[Tensor | None]) -> Tensor | None:
    given = [f for f in factors if f is not None]
    return torch.stack(given).prod(0) if given else None
