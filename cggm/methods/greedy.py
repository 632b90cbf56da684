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

    where main parameters are encoder m's and ``bypass`` are those of the unit by which the other
    modalities modulate branch m, outside of the encoders (the excitation of an MMTM unit). Once
    :math:`\max s - \min s > \epsilon`, the output of the unit of the greatest s is replaced by its
    running mean over all training samples for the next ``steps`` optimizer steps, in which all
    encoders learn. Then a normal step measures again; sums go on.

    Published: two modalities; SGD of rate 0.1; means of training and evaluation, where ours are of
    training alone. Our extensions: three and more modalities, of which a single one is never
    replaced; and a sum that is zero or unknown leads to no re-balancing, where the logarithm is
    infinite. A network without such units is refused; :class:`GreedyFeatures` serves it and is
    another method.

    Do not let a fused optimizer unscale, nor checkpoint a unit's activations. Channels are the last
    axis for a linear output layer (for late fusion, of three axes), else the second; steps that a
    bool mask of a unit's output calls absent are left out of the mean.

    Any task. Do not use it where one modality is all that carries signal: its unit stands still for
    most steps. ``epsilon=None`` is joint training.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        bypass: Modality name to the unit whose output is replaced.
        epsilon: Difference of speeds tolerated, not negative; ``None`` for any.
        steps: Optimizer steps of a re-balancing (Q).
        first_epoch: First epoch of re-balancing, from 1; sums start at once. A loop without a
            handler has to call ``start_epoch``, or it stays in epoch 1.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if there are no units, or if they
            have other names than the encoders or share parameters; in the first call, if there is
            nothing to average.
    """

    sums: Tensor
    left: Tensor
    target: Tensor

    def __init__(
        self,
        task_loss: Criterion,
        bypass: Mapping[str, nn.Module] | None = None,
        *,
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
        """Watch the units."""
        if self.bypass is None:
            raise ValueError(
                "Expected `bypass`, the units by which modalities modulate each other, because "
                "Greedy replaces what they return, but got none. Use GreedyFeatures "
                "(greedy_features), which is ours, for a network that has none."
            )
        check_names("bypass", list(self.bypass), binding.names)
        _check_apart([*binding.encoders.values(), *self.bypass.values()])
        for name, unit in self.bypass.items():
            binding.on_output(unit, partial(self._watch, name))
        self._make_room(binding)

    def loss(self, step: Step) -> Tensor:
        """Task loss; the means are gathered on the way.

        Raises:
            ValueError: If there is nothing that can be averaged.
        """
        seen, self._outputs = self._outputs, {}
        self._gather(seen)
        return step.loss

    def edit_gradients(self) -> None:
        """Measure the effective updates of parameters, and change nothing."""
        main = self._main_updates()
        assert self.bypass is not None
        units = [self.bypass[name] for name in self.binding.names]
        norms = [norm_of(p.grad for p in unit.parameters()).to(main) for unit in units]
        self._updates = torch.stack([effective_updates(torch.stack(norms), units), main])

    @torch.no_grad()
    def commit(self) -> None:
        """Move sums, decision and means."""
        assert self._updates is not None
        gradients = self.window.gradients()
        sums = self.window.named("channels/")
        parts = sum_over_ranks([*gradients.values(), *sums.values()])
        self._decide(self._both(self._updates, dict(zip(gradients, parts, strict=False))))
        self.means.commit(dict(zip(sums, parts[len(gradients) :], strict=True)))
        self._updates = None

    def _make_room(self, binding: Binding) -> None:
        if self.sums.shape[1] != len(binding.names):
            self.sums = torch.zeros(2, len(binding.names))
        self.means.place(binding.device)
        self._updates = None

    def _gather(self, seen: Mapping[str, Features]) -> None:
        """Add sums of what may be replaced to the window, and report."""
        self.measure_norms = True  # a recorder may have turned it off
        for name in self.binding.names:
            self.means.add(name, seen.get(name), self.binding, self.window)
        order = torch.arange(self.sums.shape[1], device=self.sums.device)
        used = (self.left == 0) | (self.target != order)
        self.readings = {"speed": self._speeds(), "term": used.float()}

    def _main_updates(self) -> Tensor:
        assert self.norms is not None
        return effective_updates(self.norms, list(self.binding.encoders.values()))

    def _both(self, updates: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
        """Effective updates of bypass and main parameters, ``(2, M)``."""
        return updates

    def _passed(self, place: str, tensor: Tensor, axis: int) -> Tensor:
        """What passes where nothing is replaced."""
        return tensor

    def _watch(self, name: str, output: Features) -> Features:
        self._outputs[name] = output
        return self._replace(name, output)

    def _replace(self, name: str, features: Features) -> Features:
        left_out = (self.left > 0) & (self.target == self.binding.names.index(name))

        def replace(place: str, tensor: Tensor) -> Tensor:
            axis, mean = channel_axis(tensor, self.binding), self.means.mean(place)
            passed = self._passed(place, tensor, axis)
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


class GreedyFeatures(Greedy):
    r"""Balanced learning speeds of a network without cross-modal units. Ours, not the authors'.

    The rule of :class:`Greedy` on other things: each encoder's output is multiplied by gains of one
    per channel, which never move, and whose gradient tells how much the network would change its
    use of the modality; they take the place of bypass parameters. What is replaced by its running
    mean are the encoder's features. Other than in the published re-balancing, whose steps train all
    encoders, that encoder then gets gradients of zero: one that is fast took part in 27 % of the
    steps of a test. It has to be told from Greedy in every table.

    Gradients of gains are freed of a loss scale by the gradient of a zero added to the loss; the
    loop is taken to divide by the micro-batches of a window, and a clipping is not seen by them.

    Any task. Do not use it where one modality is all that carries signal: it is held back for most
    steps. ``epsilon=None`` is joint training.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        epsilon: Difference of speeds tolerated, not negative; ``None`` for any.
        steps: Optimizer steps of a re-balancing.
        first_epoch: First epoch of re-balancing, from 1; see :class:`Greedy`.

    Raises:
        ValueError: If an argument is out of range; in the first call, if there is nothing to
            average.
    """

    def __init__(
        self,
        task_loss: Criterion,
        *,
        epsilon: float | None = 0.01,
        steps: int = 5,
        first_epoch: int = 2,
    ) -> None:
        super().__init__(task_loss, epsilon=epsilon, steps=steps, first_epoch=first_epoch)

    def prepare(self, binding: Binding) -> None:
        """Make room for gains."""
        self._make_room(binding)

    def fuse(self, name: str, features: Features) -> Features:
        """Features times gains, or their running mean while the modality is left out."""
        return self._replace(name, features)

    def loss(self, step: Step) -> Tensor:
        """Task loss; means and gradients of gains are gathered on the way.

        Raises:
            ValueError: If an encoder returns nothing that can be averaged.
        """
        self._gather(step.features)
        return step.loss + self._zero.to(step.loss)

    def edit_gradients(self) -> None:
        """Measure the effective updates of the encoders, and change nothing."""
        self._updates = self._main_updates()[None]

    @property
    def _zero(self) -> Tensor:
        """A zero whose gradient is the loss scale, which those of gains have in them."""
        return self.window.leaf("zero", torch.zeros((), device=self.binding.device))

    def _both(self, updates: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([gain_updates(gradients, self.binding.names)[None], updates])

    def _passed(self, place: str, tensor: Tensor, axis: int) -> Tensor:
        return with_gain(place, tensor, axis, self.window)


def _check_apart(modules: Sequence[nn.Module]) -> None:
    owned = [id(p) for module in modules for p in module.parameters()]
    if len(owned) != len(set(owned)) or not all(
        any(p.requires_grad for p in m.parameters()) for m in modules
    ):
        raise ValueError(
            "Expected units of `bypass` with trainable parameters of their own, but one shares "
            "some with another or with an encoder, or has none. Give each its own."
        )
