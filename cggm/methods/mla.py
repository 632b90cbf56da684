"""MLA: modalities learn in turn by one head, whose gradients are kept apart."""

import torch
from torch import Tensor

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.contract import check_late_fusion
from cggm.distributed import world_size
from cggm.heads import Criterion
from cggm.late_fusion import LateFusion
from cggm.methods._parts import rest_but
from cggm.passes import Step


class MLA(Balancer):
    r"""Multimodal learning with alternating unimodal adaptation (MLA; Zhang et al., CVPR 2024).

    Each optimizer step belongs to one modality, k, in turn: its encoder learns from the loss of its
    own prediction, through a last layer W that all modalities share. So that W does not forget the
    other modalities, its gradient is projected away from the mean inputs r of W in earlier steps,

    .. math:: q = P r, \qquad P \leftarrow P - \frac{q q^\top}{\alpha + q^\top r}, \qquad
              P \leftarrow P / \lVert P \rVert_F \tag{1}

    .. math:: \nabla_W \leftarrow \nabla_W P^\top, \qquad \alpha = \alpha_0^{1 + b/B} \tag{2}

    from P = 1, in each step but the first of all, in batch b, from 0, of the B of an epoch. At
    inference the network weights each sample's logits by their certainty,
    :math:`w_m \propto \exp(\max_k H_k - H_m)` with the entropy H of its softmax: the rule
    ``"entropy"`` of a :class:`cggm.late_fusion.LateFusion`.

    Published for two and three modalities and classes, each encoder giving the input of W. The
    published loop makes M steps with each batch, one for each modality; here a step belongs to one
    modality, and the next one takes the next batch, so an epoch has as many steps as with any other
    method, and a modality learns in 1/M of them: for as many updates as published, train M times as
    long. The authors' code divides elementwise, by :math:`\alpha + q r^\top`, which
    ``elementwise`` repeats and which is unbounded where features have either sign; and it looks for
    a parameter ``module.weight`` in a linear layer, which has ``weight`` and ``bias``, so that as
    released nothing is projected at all. Its entropy is summed over the batch, with a softmax over
    samples; ours is that of each sample, as in the paper. Ours are also layers of a modality's own
    between encoder and W, which learn with their encoder, and segmentation, with r the mean over
    voxels.

    The bias of W is not projected. After the first projections :math:`\lVert P \rVert_F = 1`
    scales the gradient of W down by about the square root of its inputs' number: under SGD that is
    a learning rate as much lower, under Adam it cancels. Modalities at rest do run, in training
    mode, but have no gradient, so that the optimizer passes them over.

    Without ``samples`` B is not known, and alpha stays :math:`\alpha_0`. Do not use it where the
    target needs modalities together: nothing here learns that.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        samples: Number of samples in the training data, of which B is told.
        turns: Steps of a modality's turn; 0 is joint training of the network.
        alpha: Start :math:`\alpha_0`, in (0, 1].
        project: Whether the gradient of W is projected.
        elementwise: Whether (1) divides elementwise, as the authors' code does.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if the network's heads do not share
            their last layer or are not combined by entropy.
    """

    replaces_loss = True
    projection: Tensor
    position: Tensor
    length: Tensor

    def __init__(
        self,
        task_loss: Criterion,
        samples: int | None = None,
        *,
        turns: int = 1,
        alpha: float = 0.1,
        project: bool = True,
        elementwise: bool = False,
    ) -> None:
        super().__init__(task_loss)
        if turns < 0 or not 0 < alpha <= 1:
            raise ValueError(
                f"Expected `turns` not negative and `alpha` in (0, 1], but got {turns} and {alpha}."
            )
        self.samples, self.turns, self.alpha = samples, turns, alpha
        self.project, self.elementwise = project, elementwise
        self.register_buffer("projection", torch.zeros(0, 0))
        self.register_buffer("position", torch.zeros(()))  # steps of the epoch so far
        self.register_buffer("length", torch.full((), float("inf")))  # those of an epoch

    def prepare(self, binding: Binding) -> None:
        """Refuse a network whose heads do not share their last layer."""
        check_late_fusion(binding.output_layer, "MLA")
        heads = binding.output_layer
        assert isinstance(heads, LateFusion)
        if heads.rule != "entropy" or not heads.shared:
            raise ValueError(
                "Expected the rule 'entropy' and one last layer of all heads, because MLA trains "
                f"modalities in turn by it, but the network combines by {heads.rule!r} and its "
                f"heads share {'one' if heads.shared else 'none'}. "
                "Build it as LateFusion(heads, 'entropy', shared=True)."
            )
        width = heads.shared_weight.shape[1]
        if len(self.projection) != width:
            self.projection = torch.eye(width, dtype=torch.float32)

    @property
    def active(self) -> str:
        """The modality whose step it is."""
        names = self.binding.names
        return names[self.clock.steps // self.turns % len(names)]

    def start_epoch(self, epoch: int) -> None:
        """Begin to count the steps of an epoch."""
        if epoch != self.clock.epoch:
            self.position.zero_()
        super().start_epoch(epoch)

    def loss(self, step: Step) -> Tensor:
        """Loss of the active modality."""
        names = self.binding.names
        if self.turns == 0:
            self.readings = {"term": torch.ones(len(names), device=self.binding.device)}
            return step.loss
        own = step.unimodal[self.active]
        if own.ndim < 2 or own.shape[1] < 2:
            raise ValueError(
                "Expected logits of two and more classes, whose entropy weights modalities, but "
                f"got predictions of shape {tuple(own.shape)}. Choose another method."
            )
        term = [float(name == self.active) for name in names]
        self.readings = {"term": torch.tensor(term, device=self.binding.device)}
        if self.project:
            size = torch.full((), float(len(own)), device=own.device)
            self.window.gather(inputs=size * self._mean_input(own), seen=size)
        total = self.task_loss(own, step.target)
        # DDP waits for a gradient of every parameter that the prediction depends on
        return total + 0 * step.prediction.sum() if world_size() > 1 else total

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Project the gradient of the shared layer; leave none of modalities at rest."""
        if self.turns == 0:
            return
        rest_but(self.active, self.binding)
        gradient = self._weight.grad
        if self.project and gradient is not None:
            flat = gradient.flatten(1)
            gradient.copy_((flat @ self._moved().T.to(flat.dtype)).view_as(gradient))

    def commit(self) -> None:
        """Move the projection, and count the step."""
        if self.turns == 0 or not self.project:
            return
        if self.samples is not None:
            length = (self.samples / self.window["seen"]).ceil()
            self.length.copy_(torch.where(self.position == 0, length, self.length))
        self.projection.copy_(self._moved())
        self.position += 1

    @property
    def _weight(self) -> Tensor:
        heads = self.binding.output_layer
        assert isinstance(heads, LateFusion)
        weight: Tensor = heads.shared_weight
        return weight

    def _mean_input(self, own: Tensor) -> Tensor:
        """Mean input r of the shared layer, ``(D,)``: the gradient of a mean logit in its row."""
        (gradient,) = torch.autograd.grad(own[:, 0].mean(), self._weight, retain_graph=True)
        return gradient[0].flatten().float()

    def _moved(self) -> Tensor:
        """Equation (1), ``(D, D)``."""
        if self.clock.steps == 0:
            return self.projection
        mean = self.window["inputs"] / self.window["seen"]
        alpha = self.alpha ** (1 + self.position / self.length)
        q = self.projection @ mean
        below = torch.outer(q, mean) if self.elementwise else q @ mean
        moved: Tensor = self.projection - torch.outer(q, q) / (alpha + below)
        return moved.div(moved.norm())
