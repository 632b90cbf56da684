"""Greedy: modalities that are learned too fast are left out for some steps."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.distributed import sum_over_ranks
from cggm.heads import Criterion
from cggm.methods._parts import (
    ChannelMeans,
    channel_axis,
    check_names,
    effective_updates,
    gain_updates,
    map_channels,
    norm_of,
    with_gain,
)
from cggm.passes import Step
from cggm.tensors import Features


class Greedy(Balancer):
    r"""Balanced learning speeds (Wu, Jastrzebski, Cho and Geras, ICML 2022).

    A network learns greedily from the modality that it learns to use fastest. With the effective
    update :math:`\mu(\theta) = \lVert g_\theta \rVert^2 / \lVert \theta \rVert^2` of an optimizer
    step, the conditional learning speed of modality m is

    .. math:: s_m = \log_{10} \frac{\sum_t \mu(\theta^{bypass}_m)}{\sum_t \mu(\theta^{main}_m)}

    where main parameters are encoder m's. Once :math:`\max s - \min s > \epsilon`, what passes
    through the bypass of the greatest s is replaced by its running mean over all training samples
    for the next ``steps`` optimizer steps. Then a normal step measures again; sums go on.

    Published: ``bypass`` are the units by which the other modality modulates branch m, outside of
    the encoders (the excitation of an MMTM unit); two modalities; SGD of rate 0.1. Our extensions:

    - without ``bypass``, for any network: each encoder's output is multiplied by gains of one per
      channel, which never move; their gradient tells how much the network would change its use of
      m. The encoder's features are then what is replaced, and the encoder gets gradients of zero;
    - three and more modalities; a single one is never replaced;
    - a sum that is zero or unknown leads to no re-balancing, where the logarithm is infinite.

    Gradients of gains are freed of a loss scale by the gradient of a zero added to the loss; the
    loop is taken to divide by the micro-batches of a window, and a clipping is not seen by them.
    With ``bypass``, do not let a fused optimizer unscale, nor checkpoint a unit's activations.
    Channels are the last axis for a linear output layer (for late fusion, of three axes), else the
    second; steps that a bool mask of an encoder's output calls absent are left out of the mean.

    Any task. Do not use it where one modality is all that carries signal: it is held back for most
    steps. ``epsilon=None`` is joint training.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        bypass: Modality name to the unit whose output is replaced, or ``None`` for gains.
        epsilon: Difference of speeds tolerated, not negative; ``None`` for any.
        steps: Optimizer steps of a re-balancing (Q).
        first_epoch: First epoch of re-balancing, from 1; sums start at once. A loop without a
            handler has to call ``start_epoch``, or it stays in epoch 1.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if units have other names than the
            encoders or share parameters; in the first call, if there is nothing to average.
    """

    sums: Tensor
    left: Tensor
    target: Tensor

    def __init__(
        self,
        task_loss: Criterion,
        *,
        bypass: Mapping[str, nn.Module] | None = None,
        epsilon: float | None = 0.01,
        steps: int = 5,
        first_epoch: int = 2,
    ) -> None:
        super().__init__(task_loss)
        self.epsilon = inf if epsilon is None else epsilon
        if not (self.epsilon >= 0 and min(steps, first_epoch) >= 1):
            raise ValueError(
                "Expected `epsilon` not negative, `steps` and `first_epoch` >= 1, but got "
                f"{epsilon}, {steps} and {first_epoch}."
            )
        self.bypass = None if bypass is None else dict(bypass)
        self.steps, self.first_epoch = steps, first_epoch
        self.means = ChannelMeans()
        self.register_buffer("sums", torch.zeros(2, 0))  # effective updates: bypass, main
        self.register_buffer("left", torch.zeros((), dtype=torch.int64))
        self.register_buffer("target", torch.zeros((), dtype=torch.int64))
        self._outputs: dict[str, Features] = {}
        self._updates: Tensor | None = None

    def prepare(self, binding: Binding) -> None:
        """Watch the units, or make room for gains."""
        if self.bypass is not None:
            check_names("bypass", list(self.bypass), binding.names)
            _check_apart([*binding.encoders.values(), *self.bypass.values()])
            for name, unit in self.bypass.items():
                binding.on_output(unit, partial(self._watch, name))
        if self.sums.shape[1] != len(binding.names):
            self.sums = torch.zeros(2, len(binding.names))
        self.means.place(binding.device)
        self._updates = None

    def fuse(self, name: str, features: Features) -> Features:
        """Features times gains, or their running mean while the modality is left out."""
        return features if self.bypass is not None else self._replace(name, features)

    def loss(self, step: Step) -> Tensor:
        """Task loss; the means are gathered on the way.

        Raises:
            ValueError: If an encoder or unit returns nothing that can be averaged.
        """
        self.measure_norms = True  # a recorder may have turned it off
        seen = step.features if self.bypass is None else self._outputs
        for name in self.binding.names:
            self.means.add(name, seen.get(name), self.binding, self.window)
        self._outputs = {}
        order = torch.arange(self.sums.shape[1], device=self.sums.device)
        used = (self.left == 0) | (self.target != order)
        self.readings = {"speed": self._speeds(), "term": used.float()}
        return step.loss if self.bypass is not None else step.loss + self._zero.to(step.loss)

    def edit_gradients(self) -> None:
        """Measure the effective updates of parameters, and change nothing."""
        assert self.norms is not None
        main = effective_updates(self.norms, list(self.binding.encoders.values()))
        self._updates = main[None]
        if self.bypass is not None:
            units = [self.bypass[name] for name in self.binding.names]
            norms = [norm_of(p.grad for p in unit.parameters()).to(main) for unit in units]
            self._updates = torch.stack([effective_updates(torch.stack(norms), units), main])

    @torch.no_grad()
    def commit(self) -> None:
        """Move sums, decision and means.

        Raises:
            RuntimeError: If the optimizer computes gradients itself, so that none was measured.
        """
        if self._updates is None:
            raise RuntimeError(
                "Expected gradients before the optimizer's step, to measure them, but it computes "
                "them in a closure. Use another optimizer."
            )
        gradients = self.window.gradients()
        sums = self.window.named("channels/")
        parts = sum_over_ranks([*gradients.values(), *sums.values()])
        updates = self._updates
        if self.bypass is None:
            over_ranks = dict(zip(gradients, parts, strict=False))
            bypass = gain_updates(over_ranks, self.binding.names)
            updates = torch.cat([bypass[None], updates])
        self._decide(updates)
        self.means.commit(dict(zip(sums, parts[len(gradients) :], strict=True)))
        self._updates = None

    @property
    def _zero(self) -> Tensor:
        """A zero whose gradient is the loss scale, which those of gains have in them."""
        return self.window.leaf("zero", torch.zeros((), device=self.binding.device))

    def _watch(self, name: str, output: Features) -> Features:
        self._outputs[name] = output
        return self._replace(name, output)

    def _replace(self, name: str, features: Features) -> Features:
        left_out = (self.left > 0) & (self.target == self.binding.names.index(name))

        def replace(place: str, tensor: Tensor) -> Tensor:
            axis, mean = channel_axis(tensor, self.binding), self.means.mean(place)
            passed = tensor
            if self.bypass is None:
                passed = with_gain(place, tensor, axis, self.window)
            if mean is None:
                return passed
            shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
            # the encoder gets a gradient of zero and not none, which DDP would wait for
            return torch.where(left_out, mean.view(shape).to(tensor), passed)

        return map_channels(replace, name, features)

    def _decide(self, updates: Tensor) -> None:
        normal = self.left == 0
        self.sums.add_(torch.where(normal & updates.isfinite().all(), updates, 0.0))
        speeds = self._speeds()
        apart = (self.sums > 0).all() & (speeds.max() - speeds.min() > self.epsilon)
        start = normal & apart & (self.clock.current >= self.first_epoch)
        self.target.copy_(torch.where(start, speeds.argmax(), self.target))
        self.left.copy_(torch.where(start, self.steps, (self.left - 1).clamp_min(0)))

    def _speeds(self) -> Tensor:
        """Conditional learning speeds, ``(M,)``; 0 where not known."""
        return torch.where((self.sums > 0).all(0), (self.sums[0] / self.sums[1]).log10(), 0.0)


def _check_apart(modules: Sequence[nn.Module]) -> None:
    owned = [id(p) for module in modules for p in module.parameters()]
    if len(owned) != len(set(owned)) or not all(
        any(p.requires_grad for p in m.parameters()) for m in modules
    ):
        raise ValueError(
            "Expected units of `bypass` with trainable parameters of their own, but one shares "
            "some with another or with an encoder, or has none. Give each its own."
        )
