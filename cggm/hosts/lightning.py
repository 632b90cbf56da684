"""Callback of Lightning that puts a balancer in the place of a module's loss."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.errors import UserError


class BalanceCallback(Callback):
    """Balances the training of a Lightning module that has its network and its loss as attributes.

    While ``fit`` runs, ``module.<criterion>(prediction, target)`` is the balancer, which in
    validation is the loss alone. So the module stays as it is, with automatic or manual
    optimization, accumulation, mixed precision and DDP. Neither the module's parameters nor its
    weights in a checkpoint get anything of the balancer; its state, heads included, is this
    callback's in the checkpoint.

    Do not use it where ``training_step`` computes its loss by a function that is no attribute: call
    the balancer there, or make it one.

    Args:
        balancer: The method, not bound yet; its task loss is the module's.
        network: Name of the attribute that has ``encoders`` and ``output_layer``; ``None`` where
            the module itself has them.
        criterion: Name of the attribute that is called as the loss.
        encoders: Given a module, its encoders by modality, where they are not ``encoders``.
        output_layer: Given a module, its last layer, where it is not ``output_layer``.
        identify: A batch to the positions of its samples in the training data, ``(B,)``, for
            methods that remember samples.
        present: A batch to the masks of :meth:`cggm.Balancer.present`, where samples lack
            modalities.
        logged: Readings that are logged as ``balance/<reading>/<modality>`` in every step.
    """

    def __init__(
        self,
        balancer: Balancer,
        *,
        network: str | None = "network",
        criterion: str = "criterion",
        encoders: Callable[[LightningModule], Mapping[str, nn.Module]] | None = None,
        output_layer: Callable[[LightningModule], nn.Module] | None = None,
        identify: Callable[[Any], Tensor] | None = None,
        present: Callable[[Any], Mapping[str, Tensor | bool]] | None = None,
        logged: tuple[str, ...] = ("score", "term"),
    ) -> None:
        self.balancer = balancer
        self.network, self.criterion = network, criterion
        self.encoders, self.output_layer = encoders, output_layer
        self.identify, self.present, self.logged = identify, present, logged
        self._loaded: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind, on the device of the training, and take the place of the loss.

        Raises:
            UserError: If the module has no such attribute, or the method cannot serve its network.
        """
        for name in (self.network, self.criterion):
            if name is not None and not hasattr(pl_module, name):
                raise UserError(
                    f"Expected {type(pl_module).__name__} to have an attribute {name!r}, but it "
                    "has none.",
                    "Name the attribute by `network=` or `criterion=` of BalanceCallback.",
                )
        network = pl_module if self.network is None else getattr(pl_module, self.network)
        self.balancer.train().bind(
            network,
            encoders=None if self.encoders is None else self.encoders(pl_module),
            output_layer=None if self.output_layer is None else self.output_layer(pl_module),
        )
        if self._loaded is not None:
            self.balancer.load_state_dict(self._loaded)
            self._loaded = None
        # No attribute that nn.Module would register: heads would be parameters of the module.
        vars(pl_module)[self.criterion] = _Loss(self.balancer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the method that an epoch begins."""
        self.balancer.start_epoch(trainer.current_epoch + 1)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Say which samples the batch holds, and what they lack."""
        if self.identify is not None:
            self.balancer.identify(self.identify(batch))
        if self.present is not None:
            self.balancer.present(self.present(batch))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Log the readings.

        Raises:
            RuntimeError: If the module did not call its loss.
        """
        if self.balancer.calls == 0:
            raise RuntimeError(
                f"Expected {type(pl_module).__name__} to call `self.{self.criterion}` in "
                "training_step, but it did not. Name the attribute that is its loss by "
                "`criterion=` of BalanceCallback."
            )
        names = self.balancer.binding.names
        for reading in self.logged:
            values = self.balancer.readings.get(reading)
            for name, value in zip(names, () if values is None else values, strict=False):
                pl_module.log(f"balance/{reading}/{name}", value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the method that an epoch ends."""
        self.balancer.end_epoch(trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its loss back, and remove every hook."""
        self._leave(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was, too."""
        self._leave(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """State of the balancer, for a checkpoint."""
        return {"balancer": self.balancer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until the balancer is bound."""
        self._loaded = state_dict["balancer"]

    def _leave(self, pl_module: LightningModule) -> None:
        vars(pl_module).pop(self.criterion, None)
        self.balancer.unbind()


class _Loss:
    """Calls a balancer, without being a module."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer

    def __call__(self, prediction: Any, target: Any) -> Tensor:  # noqa: ANN401
        loss: Tensor = self.balancer(prediction, target)
        return loss
