"""A balancing method of one's own, no published one and no recommendation; data are SIMULATED."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm import Balancer, Step
from cggm.distributed import mean_over_ranks
from cggm.heads import Criterion, Heads
from cggm.scores import Score, ratio_score


class LossShare(Balancer):
    r"""Scales an encoder's gradient by its head's share of the heads' losses.

    .. math:: B_i = 1 + w \left(M L_i / \sum_k L_k - 1\right)

    Serves any task whose loss is positive. ``weight=0`` is joint training.
    """

    heads: Heads

    def __init__(
        self, heads: Mapping[str, nn.Module], task_loss: Criterion, score: Score, weight: float = 1
    ) -> None:
        super().__init__(task_loss)
        self.heads, self.score, self.weight = Heads(heads), score, weight

    def loss(self, step: Step) -> Tensor:
        """Task loss; the heads learn from detached features, in ``judge``."""
        said = self.judge(step, self.score)
        (losses,) = mean_over_ranks([said.losses])
        term = 1 + self.weight * (losses / losses.mean() - 1)
        score = ratio_score(self.window["counts"])
        self.readings = {"score": score, "head_loss": losses, "term": term}
        return step.loss

    def scales(self, step: Step) -> Tensor | None:
        """Factor of each encoder's gradient, ``(M,)``."""
        return self.readings["term"] if self.weight else None


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of right classes."""
    return (prediction.argmax(1) == target).float().mean()


if __name__ == "__main__":
    torch.manual_seed(0)
    encoders = nn.ModuleDict({name: nn.Linear(6, 8) for name in ("clean", "noisy")})
    output_layer = nn.Linear(8, 4)
    centers, spread = torch.randn(4, 6), torch.tensor([0.5, 2.0])[:, None, None]
    heads = {name: nn.Sequential(OrderedDict(output_layer=nn.Linear(8, 4))) for name in encoders}
    balancer = LossShare(heads, nn.CrossEntropyLoss(), accuracy)
    balancer.bind(encoders=encoders, output_layer=output_layer)
    optimizer = torch.optim.SGD([*encoders.parameters(), *output_layer.parameters()], lr=0.1)
    for step in range(1, 201):
        target = torch.randint(4, (32,))
        inputs = centers[target] + spread * torch.randn(2, 32, 6)
        features = [f(x) for f, x in zip(encoders.values(), inputs, strict=True)]
        optimizer.zero_grad()
        balancer(output_layer(sum(features)), target).backward()
        optimizer.step()
        if step % 50 == 0:
            scores, terms = balancer.readings["score"], balancer.readings["term"]
            for name, score, term in zip(encoders, scores, terms, strict=True):
                print(f"step {step:<3}  {name:<5}  score {score:.2f}  B {term:.2f}")
