"""Hugging Face's ``Trainer`` with a balancer: its loss function, and a trainer that keeps it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from cggm.balancer import Balancer
from cggm.errors import UserError

STATE = "balancer.pt"
"""File of the balancer's state in a checkpoint of :class:`BalancedTrainer`."""


_IGNORED = -100  # the label that neither the trainer counts nor PyTorch's cross-entropy


def balanced_loss(
    balancer: Balancer, prediction: Callable[[Any], Any] | str = "logits"
) -> Callable[..., Tensor]:
    """A ``compute_loss_func`` for ``transformers.Trainer`` that calls a bound balancer.

    Bind the balancer to the model before the trainer is made. The trainer divides no loss of a
    ``compute_loss_func``: micro-batches are weighted here by their share of the labels that the
    optimizer steps on, as the trainer counts them: all but -100. In evaluation it is the loss
    alone.

    Do not use it for methods that count epochs, or in a training that is to be resumed:
    :class:`BalancedTrainer`.

    Args:
        balancer: The method, bound; its task loss is a mean over the labels that are not -100.
        prediction: What the model returns to the prediction that the loss takes, or its name in a
            mapping or among the attributes.

    Returns:
        ``(outputs, labels, num_items_in_batch)`` to a scalar.
    """

    def loss(
        outputs: Any,  # noqa: ANN401
        labels: Any,  # noqa: ANN401
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        if not isinstance(prediction, str):
            made = prediction(outputs)
        else:
            mapping = isinstance(outputs, Mapping)
            made = outputs[prediction] if mapping else getattr(outputs, prediction)
        value: Tensor = balancer(made, labels)
        if num_items_in_batch is None:
            return value
        share: Tensor = labels.ne(_IGNORED).sum() / num_items_in_batch
        return value * share

    return loss


class BalancedTrainer(Trainer):  # type: ignore[misc, unused-ignore]
    """``transformers.Trainer`` whose loss is a balancer, which is saved and told of epochs as well.

    All else is the trainer's. A checkpoint gets the file ``balancer.pt`` beside the optimizer's
    state, and ``train(resume_from_checkpoint=...)`` goes on from it; the weights have no head in
    them. The loss is that of :func:`balanced_loss`.

    Args:
        *args: As the trainer takes them, model and arguments first.
        balancer: The method, bound to the model, or to be bound to it.
        prediction: As of :func:`balanced_loss`.
        identify: Inputs of a batch to the positions of its samples in the training data, ``(B,)``,
            for methods that remember samples.
        present: Inputs of a batch to the masks of :meth:`cggm.Balancer.present`, where samples lack
            modalities.
        **kwargs: As the trainer takes them.

    Raises:
        UserError: On resuming, if a checkpoint has no state of the balancer.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        balancer: Balancer,
        prediction: Callable[[Any], Any] | str = "logits",
        identify: Callable[[Any], Tensor] | None = None,
        present: Callable[[Any], Mapping[str, Tensor | bool]] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        kwargs["compute_loss_func"] = balanced_loss(balancer, prediction)
        super().__init__(*args, **kwargs)
        self.balancer = balancer if balancer.bound else balancer.bind(self.model)
        self.identify, self.present = identify, present
        self.add_callback(_Epochs(balancer))

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The trainer's, once the balancer knows which samples the batch holds."""
        if model.training and self.identify is not None:
            self.balancer.identify(self.identify(inputs))
        if model.training and self.present is not None:
            self.balancer.present(self.present(inputs))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # Before the trainer's own state, which a checkpoint is known by to be whole.
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.balancer.state_dict(), Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / STATE
        if not file.is_file():
            raise UserError(
                f"Expected the state of {type(self.balancer).__name__} in {file}, but there is no "
                "such file.",
                "Copy it along with the checkpoint, or train anew.",
            )
        device = self.balancer.binding.device
        self.balancer.load_state_dict(torch.load(file, map_location=device, weights_only=True))


class _Epochs(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Tells a balancer where epochs begin and end."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self._epoch = int(state.epoch) + 1
        self.balancer.start_epoch(self._epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.balancer.end_epoch(self._epoch)
