"""The contract of a balancing method, and joint training, which balances nothing."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm import contract
from cggm.binding import Binding
from cggm.heads import Criterion, HeadReadings, Heads
from cggm.passes import NO_STEP, REPEATED, TAKEN_OVER, Step
from cggm.scores import Clock, Score, ScoreTracker, Window, kept_in_full
from cggm.tensors import Features, presence_of, without_subclass

# After so many calls parameters were replaced, and after so many an optimizer is missed.
_CALLS_UNTIL_LOOKED, _CALLS_WITHOUT_STEP = 3, 20


class Balancer(nn.Module):
    """A criterion with memory; this base class is joint training.

    Bound to a network, it is called as ``loss = balancer(prediction, target)`` and returns what is
    back-propagated. A method overrides ``prepare``, ``fuse``, ``identify``, ``loss``, ``scales``,
    ``update_scales``, ``edit_gradients``, ``commit``, ``start_epoch`` or ``end_epoch``. What it
    remembers from step to step it keeps in buffers; what it gathers over the micro-batches of a
    step it adds to ``window``. When the optimizer has stepped, this class calls ``commit``, moves
    ``scores`` by the window, lets ``heads`` step and clears the window; where a step was skipped,
    it forgets the window.

    In eval mode and under ``torch.no_grad`` the call gives the task loss.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.

    Attributes:
        replaces_loss: Whether the method puts a loss of its own in place of the task loss, where
            others add to it; a chain can have one such.
        trains_through_heads: Whether the heads' losses are part of what the network learns from.
        heads_follow: Whether heads learn at the rate that the network's optimizer has, with its
            schedule, in place of their own; the training scripts set it where
            ``trains_through_heads``.
        serves_absence: Whether the method can leave out a modality that samples lack, see
            :meth:`present`.
        serves_late_fusion: Whether a late-fusion network's own heads can take the place of
            ``heads``, which are dropped in ``bind``.
        heads: Heads that judge modalities, where the method has some.
        scores: State of their scores, where the method keeps one.
        window: Sums over the micro-batches since the last optimizer step.
        readings: What the method measured in the last call, by name: device tensors, one value per
            modality, NaN for one that the batch lacks. Empty for joint training.
        calls: Training calls since the balancer was bound.
        measure_norms: Whether to measure ``norms`` when the optimizer steps, which costs a pass
            over the encoders' gradients.
        clock: Epoch and optimizer steps so far.
        norms: Euclidean norm of each encoder's gradient at the last such step, ``(M,)``.
    """

    serves_absence = False
    replaces_loss = False
    trains_through_heads = False
    serves_late_fusion = False
    heads: Heads | None
    scores: ScoreTracker | None

    def __init__(self, task_loss: Criterion) -> None:
        super().__init__()
        self.task_loss = task_loss
        self.heads = None
        self.scores = None
        self.clock = Clock()
        self.window = Window()
        self.readings: dict[str, Tensor] = {}
        self.calls = 0
        self.heads_follow = False
        self.measure_norms = False
        self.norms: Tensor | None = None
        self._micro_batches = 0
        self._finished = False
        self._calls_without_step = 0
        self._present: dict[str, Tensor | bool] = {}
        self._warned: set[str] = set()
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
    def readings_by_modality(self) -> dict[str, dict[str, float]]:
        """The readings as numbers, by modality and name; waits for the device."""
        rows = {reading: value.tolist() for reading, value in self.readings.items()}
        return {n: {k: r[i] for k, r in rows.items()} for i, n in enumerate(self.clock.modalities)}

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
        encoders: Mapping[str, nn.Module] | Sequence[nn.Module] | None = None,
        output_layer: nn.Module | None = None,
        decode: contract.Decode | None = None,
    ) -> Self:
        """Tie this balancer to a network's modules.

        Heads move to the network's device. Bind before the first call of a compiled network, and
        before loading a state of this balancer.

        Args:
            network: Has ``encoders: nn.ModuleDict`` and ``output_layer``, and ``decode`` where a
                method asks for it; may be wrapped by DDP or ``torch.compile``. Encoders in an
                ``nn.ModuleList`` are named "0", "1" and so on.
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
        named, layer, decode = contract.modules_of(network, encoders, output_layer, decode)
        binding = Binding(named, layer, self, decode)
        try:
            self.join(binding)
        except BaseException:
            binding.remove()
            self.leave()
            raise
        binding.updates_scaled = type(self).update_scales is not Balancer.update_scales
        if binding.take_over():
            self._warn(TAKEN_OVER.format(method=type(self).__name__))
        return self

    def join(self, binding: Binding) -> None:
        """Take part in a binding, whose hooks call this balancer or one that it is a part of.

        Args:
            binding: The hooks on the network.

        Raises:
            ValueError: If the method cannot serve its modules.
        """
        self.clock.name(binding.names)
        self.window = Window()
        if binding.late_fusion and self.serves_late_fusion:
            self.heads = None
        if self.heads is not None:
            contract.check_heads(
                self.heads, binding.names, binding.output_layer, type(self).__name__
            )
        self.prepare(binding)
        self._place(binding)
        self._binding = binding
        self.calls = 0

    def leave(self) -> None:
        """Take no part in a binding any more; its hooks stay."""
        self._binding = None

    def unbind(self) -> None:
        """Remove every hook; the state stays."""
        if self._binding is not None:
            self._binding.remove()
        self.leave()

    def forward(self, prediction: Any, target: Any, loss: Tensor | None = None) -> Tensor:  # noqa: ANN401
        """Loss to back-propagate.

        Args:
            prediction: The network's prediction from the forward pass just made.
            target: What the task loss compares it with.
            loss: Task loss of the prediction where the caller has computed it.

        Returns:
            A scalar.

        Raises:
            ValueError: If the task loss is no scalar, or if the batch lacks a modality and the
                method cannot leave one out.
            RuntimeError: If a module did not run in a forward pass just made.
        """
        prediction, target = without_subclass(prediction), without_subclass(target)
        if loss is None:
            loss = self.task_loss(prediction, target)
        contract.check_scalar(loss, "the network")
        if not self.binding.active:
            self._present = {}
            return self.binding.unbalanced(loss)
        if self.clock.device != self.binding.device:  # moved since
            self._place(self.binding)
        if self._micro_batches:
            self._keep_window(contract.gradients_kept(self.binding.modules))
        self._open()
        if self.calls == 1 and type(self) is not Balancer:
            contract.check_ranks(loss, type(self).__name__)
        step = self._step(prediction, target, loss)
        contract.check_graph(loss, "the network")
        total = self.loss(step)
        self._set_factors(step)
        return total

    def take_part(self, step: Step) -> Tensor:
        """The loss of a forward pass that a chain of methods has made."""
        self._open()
        self._present = {}
        return self.loss(step)

    def prepare(self, binding: Binding) -> None:
        """Look at the modules while binding; an error refuses them and leaves no trace."""

    def identify(self, samples: Tensor) -> None:
        """Positions of the batch's samples in the training data, ``(B,)``, before the criterion.

        Only a method that remembers samples needs it.
        """

    def present(self, masks: Mapping[str, Tensor | bool]) -> None:
        """Say which samples of the coming batch have which modality, before the forward pass.

        A head sees and scores the samples that have its modality, and the gradient that the
        network sends to an encoder is scaled for those alone. A modality that the whole batch lacks
        is out of the direction loss, and its encoder need not run; of one that ran before nothing
        has to be said then. Holds for one call of the criterion, and a rank's own batch.

        Args:
            masks: Modality name to bool, shape ``(B,)``, on the processor, or one bool for the
                whole batch; modalities left out are there in all samples.

        Raises:
            ValueError: If a name is not that of an encoder.
        """
        unknown = [name for name in masks if name not in self.binding.names]
        if unknown:
            known = self.binding.names
            raise ValueError(f"Expected modalities of {known}, but got {unknown}. Correct them.")
        self._present = dict(masks)

    def told_present(self, size: int) -> Tensor:
        """What :meth:`present` said of a batch of this size, bool, ``(B, M)``, on the processor."""
        names = self.binding.names
        rows = [torch.as_tensor(self._present.get(name, True)) for name in names]
        return torch.stack([mask.detach().cpu().bool().expand(size) for mask in rows], 1)

    def fuse(self, name: str, features: Features) -> Features:
        """What the network gets in place of an encoder's output, in training only.

        Called as each encoder returns; while a checkpointed region is recomputed it has to repeat
        itself, see ``binding.recomputing``.
        """
        return features

    def loss(self, step: Step) -> Tensor:
        """What is back-propagated."""
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
        """Move the state by the window; called once the optimizer really stepped."""

    def finish_gradients(self) -> None:
        """Let the method edit the gradients now, which it else does as the optimizer steps.

        A loop that clips calls this between its last backward pass of a step and the clipping, so
        that what a method puts into the gradients (MMPareto, the noise of OGM-GE) is clipped, too.
        Gradients have to be without a loss scale by then. Methods that edit nothing do not need it.
        """
        if self._micro_batches and not self._finished:
            self._measure(None)
            self.edit_gradients()
            self._finished = True

    def judge(self, step: Step, score: Score) -> HeadReadings:
        """Let every head predict and learn, and add to the window what it says.

        Adds ``counts`` of the score and the number of batches ``seen`` by each, of all ranks.

        Args:
            step: The forward pass.
            score: See :func:`cggm.scores.score_counts`.
        """
        assert self.heads is not None
        said = self.heads.observe(step.features, step.target, self.task_loss, score, step.presence)
        self.window.gather(counts=said.counts, seen=said.seen)
        return said

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Surround an update of the network that no ``torch.optim.Optimizer`` makes."""
        self.binding.before_update(None)
        yield
        self.binding.after_update()

    def abandon(self) -> None:
        """Forget the window: its step is not made, and the next call opens a new one."""
        self._keep_window(False)
        self._micro_batches = 0
        self._finished = False

    def start_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch, counted from 1; an override calls this one, too."""
        self.clock.epoch = epoch
        self._check_heads()

    def end_epoch(self, epoch: int) -> None:
        """Called at the end of each epoch."""

    def before_step(self, optimizer: Optimizer | None) -> None:
        """Called before the network is updated, with the optimizer where it is one of torch's."""
        if self.heads_follow and self.heads is not None and optimizer is not None:
            for group in self.heads.optimizer.param_groups:
                group["lr"] = optimizer.param_groups[0]["lr"]
        self._measure(optimizer)
        if self._micro_batches and not self._finished:
            self.edit_gradients()

    def after_step(self) -> None:
        """Called once the network was really updated; moves state, heads and clock."""
        if not self._micro_batches:  # of several optimizers the first one to step counts
            return
        self.commit()
        if self.scores is not None:
            self.scores.commit(self.window)
        if self.heads is not None:
            self.heads.step()
        self.window.clear()
        self.clock.steps += 1
        self._micro_batches = self._calls_without_step = 0
        self._finished = False
        steps = self.clock.steps
        if steps & (steps - 1) == 0 and self.binding.device.type == "cpu":  # 1, 2, 4, ...
            self._check_heads()

    def __getstate__(self) -> dict[str, Any]:
        """State without the hooks and the window: a copy, or a saved balancer, is not bound."""
        unbound = {"_binding": None, "window": Window(), "_micro_batches": 0, "_finished": False}
        return self.__dict__ | unbound

    def _open(self) -> None:
        self.calls += 1
        self._micro_batches += 1
        self._finished = False

    def _measure(self, optimizer: Optimizer | None) -> None:
        if self.measure_norms:
            self.norms = contract.gradient_norms(self.binding.encoders.values(), optimizer)

    def _step(self, prediction: Any, target: Any, loss: Tensor) -> Step:  # noqa: ANN401
        binding = self.binding
        told, self._present = self._present, {}
        presence = presence_of(told, binding.names, prediction)
        captured = binding.take(loss, presence)
        for name in captured.repeated:
            self._warn(REPEATED.format(name=name, method=type(self).__name__))
        skipped = [name for name in binding.names if name not in captured.features]
        if skipped and presence is None:
            presence = presence_of(dict.fromkeys(skipped, False), binding.names, prediction)
        if presence is not None and type(self) is not Balancer and not self.serves_absence:
            presence.refuse(type(self).__name__)
        return captured.as_step(prediction, target, loss, presence)

    def _set_factors(self, step: Step) -> None:
        factors, presence = self.binding.factors, step.presence
        factors.gradient, factors.update = self.scales(step), self.update_scales(step)
        factors.masks = {}
        for message in self.binding.shared_paths(step.loss):
            self._warn(message)
        if presence is None:
            return
        factors.leave_out(presence, step.features, self.binding.device)
        some = presence.matrix().any(0).to(self.binding.device, non_blocking=True)
        if factors.update is not None and "seen" in self.window:  # alike on all ranks
            factors.update = torch.where(self.window["seen"] > 0, factors.update, 1.0)
        for name, value in self.readings.items():
            if value.shape == some.shape and value.is_floating_point():
                self.readings[name] = torch.where(some, value, torch.nan)

    def _place(self, binding: Binding) -> None:
        """Move to the network's device; what is remembered is float32 at least."""
        self.to(binding.device)
        if self.heads is not None:
            self.heads.place(binding.device)
        self.clock.device = binding.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let moves and casts leave averages and counts exact, which half precision would stop."""
        with kept_in_full(self, self.heads, self.task_loss):
            return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]

    def _keep_window(self, kept: Tensor | bool) -> None:
        self.window.keep(kept)
        if self.heads is not None:
            self.heads.window.keep(kept)
        self._calls_without_step += 1
        if self._calls_without_step == _CALLS_UNTIL_LOOKED:
            self.binding.find_parameters()
        if self.clock.steps or self._calls_without_step < _CALLS_WITHOUT_STEP:
            return
        if self.binding.factors.overflow():  # of a gradient scaler that still skips steps
            self._calls_without_step = _CALLS_WITHOUT_STEP // 2
        elif self._calls_without_step > _CALLS_WITHOUT_STEP and not bool(kept):
            self._warn(NO_STEP.format(method=type(self).__name__, calls=_CALLS_WITHOUT_STEP))

    def _check_heads(self) -> None:
        """Say once of each head that it is lost; waits for the device."""
        for message in [] if self.heads is None else self.heads.lost():
            self._warn(message)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)
