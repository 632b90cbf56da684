"""Loss function of the Hugging Face ``Trainer`` that is a balancer."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cggm.balancer import Balancer


def balanced_loss(
    balancer: Balancer, prediction: Callable[[Any], Any] | str = "logits"
) -> Callable[..., Tensor]:
    """A ``compute_loss_func`` for ``transformers.Trainer`` that calls a bound balancer.

    Bind the balancer to the model before the trainer is made. The trainer divides no loss of a
    ``compute_loss_func``: micro-batches are weighted here by their share of the samples that the
    optimizer steps on, which is what the trainer counts. In evaluation it is the loss alone.

    Do not use it for token-level labels, where the trainer counts tokens and not samples.

    Args:
        balancer: The method, bound; its task loss is a mean over samples.
        prediction: What the model returns to the prediction that the loss takes, or the name of its
            attribute.

    Returns:
        ``(outputs, labels, num_items_in_batch)`` to a scalar.
    """

    def loss(
        outputs: Any,  # noqa: ANN401
        labels: Any,  # noqa: ANN401
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        made = getattr(outputs, prediction) if isinstance(prediction, str) else prediction(outputs)
        value: Tensor = balancer(made, labels)
        return value if num_items_in_batch is None else value * (len(labels) / num_items_in_batch)

    return loss
