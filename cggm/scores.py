"""Steps and windows of micro-batches, and the scores and gains that are taken from them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cggm.distributed import sum_over_ranks
from cggm.functional import ema_gains, signal_gates
from cggm.tensors import batch_size, kind_of, map_tensors, take_samples, tensors_in

Score = Callable[[Any, Any], Any]

GAINS = ("ema", "batch")


class Clock(nn.Module):
    """Epoch and optimizer steps of a balancer, saved and restored with it.

    Attributes:
        epoch: The epoch under way, counted from 1; 0 where none was started.
        steps: Optimizer steps made.
        modalities: Those of the network it was bound to, in order; empty before.
        device: Where the balancer was put; ``None`` before it was bound.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.steps = 0
        self.modalities: list[str] = []
        self.device: torch.device | None = None

    def name(self, modalities: Sequence[str]) -> None:
        """Say whose state it is, which is kept by place.

        Args:
            modalities: Names, in order.

        Raises:
            ValueError: If it has moved with others.
        """
        if self.steps:
            _check_modalities(list(modalities), self.modalities)
        self.modalities = list(modalities)

    @property
    def current(self) -> int:
        """The epoch under way, the first one in a loop that starts none."""
        return max(self.epoch, 1)

    def get_extra_state(self) -> dict[str, Any]:
        """Both numbers, and the modalities where they are known."""
        state = {"epoch": self.epoch, "steps": self.steps}
        places = {name: place for place, name in enumerate(self.modalities)}
        return state | ({"modalities": places} if places else {})

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave; a state of other modalities is refused."""
        theirs = list(state.get("modalities", {}))  # older states name none
        _check_modalities(self.modalities, theirs)
        self.epoch, self.steps = state["epoch"], state["steps"]
        self.modalities = self.modalities or theirs


@contextmanager
def kept_in_full(balancer: nn.Module, *apart: nn.Module | Score | None) -> Iterator[None]:
    """Keep what a balancer remembers at float32 at least while it is moved or cast.

    In half precision a count stops at 256, and averages stand still.

    Args:
        balancer: The balancer.
        apart: Parts of it that remember nothing of the training's balance, such as heads.
    """
    others = {inner for m in apart if isinstance(m, nn.Module) for inner in m.modules()}
    modules = [module for _, module in balancer.named_modules(memo=others)]
    before = [(m, n, b) for m in modules for n, b in m._buffers.items() if b is not None]
    yield
    for module, name, buffer in before:
        now = module._buffers[name]
        if now is not None and now.is_floating_point() and torch.finfo(now.dtype).bits < 32:
            full = torch.promote_types(buffer.dtype, torch.float32)
            module._buffers[name] = buffer.to(now.device, full)


def _check_modalities(own: list[str], theirs: list[str]) -> None:
    if own and theirs and own != theirs:
        raise ValueError(
            f"Expected the state of a balancer of the modalities {own}, but got one of {theirs}. "
            "Name the encoders as then, in the same order, or begin anew."
        )


class Window:
    """Sums over the micro-batches between two optimizer steps, by name.

    A :class:`cggm.Balancer` forgets them when the optimizer has stepped, and before the next
    micro-batch when a step was skipped.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._leaves: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> Tensor:
        """Add one micro-batch's value.

        Args:
            name: Of the sum.
            value: Of the same shape in every micro-batch, without a graph.

        Returns:
            The sum so far, this value included.
        """
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        return self._sums[name]

    def gather(self, **values: Tensor) -> None:
        """Add values of all ranks, in one collective call; every rank gives the same names."""
        for name, total in zip(values, sum_over_ranks(list(values.values())), strict=True):
            self.add(name, total)

    def leaf(self, name: str, start: Tensor) -> Tensor:
        """A tensor whose gradients of all micro-batches add up in its ``grad``, by name.

        Args:
            name: Of the tensor.
            start: Its value, where it is asked for the first time.
        """
        if name not in self._leaves:
            self._leaves[name] = start.detach().requires_grad_()
        return self._leaves[name]

    def gradients(self) -> dict[str, Tensor]:
        """Gradient of each leaf by name, zero where there is none yet."""
        leaves = self._leaves.items()
        return {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves}

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name]

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Sums whose names begin with a prefix, by the rest of the name."""
        size = len(prefix)
        return {name[size:]: x for name, x in self._sums.items() if name.startswith(prefix)}

    def keep(self, kept: Tensor | bool) -> None:
        """Forget everything unless ``kept``, without asking the device."""
        if kept is False:
            self.clear()
            return
        kept = torch.as_tensor(kept)
        for name, total in self._sums.items():
            self._sums[name] = torch.where(kept.to(total.device), total, torch.zeros_like(total))
        for leaf in self._leaves.values():
            if leaf.grad is not None:
                leaf.grad = torch.where(kept.to(leaf.device), leaf.grad, 0.0)

    def clear(self) -> None:
        """Forget everything."""
        self._sums.clear()
        for leaf in self._leaves.values():
            leaf.grad = None


def score_counts(score: Score, prediction: Any, target: Any) -> Tensor:  # noqa: ANN401
    """Numerators and denominators of a score, so that it can be summed before it is divided.

    Args:
        score: ``(prediction, target)`` to a number, which is averaged over samples, to one value
            per sample, ``(B,)``, or to a pair of numerators and denominators of shape ``(K,)``,
            whose score is the mean of the K ratios; a third may be what the target holds of each,
            ``(K,)``: ratios count where it is not 0.
        prediction: A head's prediction, shape ``(B, ...)``, or a container of such tensors.
        target: What the task loss compares it with.

    Returns:
        Shape ``(2, K)``, or ``(3, K)`` where the target's share was given, float32, on the
        prediction's device.

    Raises:
        ValueError: If the score is none of these.
    """
    value = score(prediction, target)
    device = next(tensors_in(prediction)).device
    if isinstance(value, tuple) and len(value) in (2, 3):
        rows = [_as_float(part, device).reshape(-1) for part in value]
        if all(row.shape == rows[0].shape for row in rows):
            return torch.stack(rows)
    size = batch_size(prediction)
    number = _as_float(value, device)
    if number.shape == (size,):
        number = number.mean()
    if number.numel() != 1:
        raise ValueError(
            f"Expected `score` to return a number, one value for each of the {size} samples, or a "
            f"pair of numerators and denominators, but got {kind_of(value)}."
        )
    number = number.reshape(())
    return torch.stack([number * size, number.new_full((), size)])[:, None]


def with_chance(score: Score) -> Score:
    """A score and what chance gives: the same predictions against the next sample's target.

    A single sample meets its own target mirrored along every spatial axis; where it has none, it is
    its own chance. Of a target in containers, what belongs to no sample stays, see
    :func:`cggm.tensors.take_samples`.

    Args:
        score: See :func:`score_counts`.

    Returns:
        Score of twice as many numerators and denominators, those of chance in the second half.
    """
    return partial(_score_and_chance, score)


def ratio_score(counts: Tensor) -> Tensor:
    """Mean of the ratios, where 0/0 counts as 1: nothing to find and nothing found.

    Args:
        counts: Numerators and denominators, shape ``(M, 2, K)``; with what the target holds of
            each, ``(M, 3, K)``, the mean is taken over the ratios of which it holds something.

    Returns:
        Scores, shape ``(M,)``; NaN where the target holds nothing of all.
    """
    above, below, *held = counts.unbind(1)
    empty = (below == 0) & (above == 0)
    ratios = torch.where(empty, 1.0, above / torch.where(empty, 1.0, below))
    if not held:
        return ratios.mean(1)
    counted = held[0] != 0
    return torch.where(counted, ratios, 0.0).sum(1) / counted.sum(1)


class ScoreTracker(nn.Module):
    """Moving averages of M heads' scores, and the gains taken from them.

    The score of a window is taken over all its micro-batches and all ranks. ``gains`` looks one
    step ahead without moving the state, which ``commit`` does once the optimizer has stepped.
    The state of a modality that no sample of the window had does not move.

    A window holds ``counts``, see :func:`score_counts`, ``(M, 2, K)`` or ``(M, 3, K)``, and
    ``seen``, how many micro-batches had each modality, by share of their samples, ``(M,)``.

    Args:
        modalities: Number of heads.
        gain: ``"ema"``, fast minus slow moving average, or ``"batch"``, the difference to the last
            step (the paper; the score before the first step is 0).
        betas: Decay of the fast and of the slow average.

    Attributes:
        fast: Fast moving average of the scores from zero, without bias correction, ``(M,)``.
        slow: Slow moving average, likewise.
        last: Score of the last step, ``(M,)``.
        steps: Steps made, a scalar.
        missed: Steps of which no sample had the modality, ``(M,)``.
    """

    fast: Tensor
    slow: Tensor
    last: Tensor
    steps: Tensor
    missed: Tensor

    def __init__(
        self, modalities: int, gain: str = "ema", betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__()
        if gain not in GAINS:
            raise ValueError(f"Expected `gain` to be one of {list(GAINS)}, but got {gain!r}.")
        if not all(0 <= beta < 1 for beta in betas) or betas[0] >= betas[1]:
            raise ValueError(f"Expected `betas` to be 0 <= fast < slow < 1, but got {betas}.")
        self.gain = gain
        self.betas = betas
        for name in ("fast", "slow", "last", "missed"):
            self.register_buffer(name, torch.zeros(modalities))
        self.register_buffer("steps", torch.zeros(()))
        self._part = (0, 1)  # counts come in so many equal parts, of which this one is tracked

    def scores(self, window: Window) -> Tensor:
        """Scores of the window, ``(M,)``; the last step's where they are not finite or not seen."""
        index, parts = self._part
        scores = ratio_score(window["counts"].chunk(parts, -1)[index]).to(self.last.dtype)
        return torch.where(torch.isfinite(scores) & self._seen(window), scores, self.last)

    def gains(self, window: Window) -> Tensor:
        """Gains that the window's scores bring, ``(M,)``, higher is better."""
        if self.gain == "batch":
            return self.batch_gains(window)
        steps = self.steps + self._seen(window) - self.missed
        gains = ema_gains(*self._averaged(window), steps, self.betas)
        return torch.where(steps > 0, gains, 0.0)

    def batch_gains(self, window: Window) -> Tensor:
        """Differences between the window's scores and the last step's, the paper's gains."""
        return self.scores(window) - self.last

    def level(self, window: Window) -> Tensor:
        """Fast moving average of the scores with the window's, without bias correction."""
        return self._averaged(window)[0]

    def gates(self, window: Window) -> Tensor:
        """Trust in each modality, ``(M,)``: full."""
        return torch.ones_like(self.last)

    def commit(self, window: Window) -> None:
        """Move the state by the window's scores."""
        scores = self.scores(window)
        fast, slow = self._averaged(window)
        self.fast.copy_(fast)
        self.slow.copy_(slow)
        self.last.copy_(scores)
        self.missed += ~self._seen(window)
        self.steps += 1

    def _averaged(self, window: Window) -> tuple[Tensor, Tensor]:
        scores, seen = self.scores(window), self._seen(window)
        pairs = zip((self.fast, self.slow), self.betas, strict=True)
        fast, slow = (torch.where(seen, torch.lerp(scores, x, beta), x) for x, beta in pairs)
        return fast, slow

    def _seen(self, window: Window) -> Tensor:
        return window["seen"] > 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        # a state from before modalities could be absent missed nothing
        state_dict.setdefault(f"{prefix}missed", torch.zeros_like(self.missed))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SignalTracker(ScoreTracker):
    """Moving averages of scores, gains, and trust by how far the scores are above chance.

    Takes counts of :func:`with_chance`. Signal is the fast moving average of the scores less that
    of chance, whichever way gains are taken.

    Args:
        modalities: Number of heads.
        gain: See :class:`ScoreTracker`.
        betas: See :class:`ScoreTracker`.
    """

    def __init__(
        self, modalities: int, gain: str = "ema", betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(modalities, gain, betas)
        self.chance = ScoreTracker(modalities, gain, betas)
        self._part, self.chance._part = (0, 2), (1, 2)

    def gates(self, window: Window) -> Tensor:
        """Trust in each modality, ``(M,)``, see :func:`cggm.functional.signal_gates`."""
        # without bias correction, which is the same factor for all and cancels in shares
        return signal_gates(self.level(window) - self.chance.level(window))

    def commit(self, window: Window) -> None:
        """Move the state by the window's scores."""
        super().commit(window)
        self.chance.commit(window)


def _score_and_chance(score: Score, prediction: Any, target: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    moved = _of_next_sample(target, batch_size(prediction))
    counts = [score_counts(score, prediction, t) for t in (target, moved)]
    return tuple(torch.cat(counts, 1))


def _of_next_sample(target: Any, size: int) -> Any:  # noqa: ANN401
    if size == 1:
        return map_tensors(_mirrored, target)
    if isinstance(target, Tensor) and target.ndim:  # whose samples the loss knows how to find
        return target.roll(1, 0)
    rows: Sequence[int] = [size - 1, *range(size - 1)]
    return take_samples(target, rows, size)


def _mirrored(target: Tensor) -> Tensor:
    return target.flip(tuple(range(1, target.ndim)))


def _as_float(value: Any, device: torch.device) -> Tensor:  # noqa: ANN401
    """A number, an array or a tensor as float32, without a graph."""
    if isinstance(value, Tensor):
        return value.detach().float().to(device)
    try:
        return torch.as_tensor(value, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            "Expected `score` to return a number, one value for each sample, or a pair of "
            f"numerators and denominators, but got {kind_of(value)}."
        ) from error
