"""One training of the contract's sessions in Lightning, under Accelerate and in HF's Trainer."""

from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.cggm.contract_hosts import EPOCHS, Session, positions


def lightning_automatic(name: str, accumulation: int, **options) -> Session:
    """Lightning runs backward and the optimizer, within a closure."""
    return lightning(name, accumulation, automatic=True, **options)


def lightning_manual(name: str, accumulation: int) -> Session:
    """The module runs backward and the optimizer by itself."""
    return lightning(name, accumulation, automatic=False)


def lightning(name: str, accumulation: int, *, automatic: bool, **options) -> Session:
    """A session in Lightning's trainer."""
    from cggm.hosts import BalanceCallback

    session = Session(name)
    module = module_of(session, accumulation, automatic=automatic)
    callback = BalanceCallback(session.balancer, identify=positions, logged=())
    accumulated = {"accumulate_grad_batches": accumulation} if automatic else {}
    trainer = quiet_trainer(callbacks=[callback], **accumulated, **options)
    trainer.fit(module, loader(session))
    return session


def quiet_trainer(**options):
    """Lightning's trainer on the processor, without files and bars."""
    from lightning.pytorch import Trainer

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1}
    return Trainer(**{**quiet, "enable_checkpointing": False, **defaults, **options})


def loader(session: Session) -> DataLoader:
    """The contract's batches, in their order."""
    return DataLoader(session.batches, batch_size=None)


def module_of(session: Session, accumulation: int = 1, *, automatic: bool = True):
    """A Lightning module around a session's network, loss and optimizer."""
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.criterion = session.network, session.loss
            self.automatic_optimization = automatic

        def training_step(self, batch, index):
            loss = self.criterion(self.network(batch[0]), batch[1])
            if automatic:
                return loss
            optimizer = self.optimizers()
            if index % accumulation == 0:
                optimizer.zero_grad()
            self.manual_backward(loss / accumulation)
            if (index + 1) % accumulation == 0:
                optimizer.step()
            return loss

        def validation_step(self, batch, index):
            self.log("val", self.criterion(self.network(batch[0]), batch[1]))

        def configure_optimizers(self):
            return session.optimizer

    return Module()


def accelerate_loop(name: str, accumulation: int, **options) -> Session:
    """A loop under Accelerate, which divides losses and skips steps while it accumulates."""
    from accelerate import Accelerator

    session = Session(name)
    accelerator = Accelerator(gradient_accumulation_steps=accumulation, cpu=True, **options)
    network, optimizer, batches = accelerator.prepare(
        session.network, session.optimizer, loader(session)
    )
    session.balancer.bind(network)
    for epoch in range(1, EPOCHS + 1):
        session.balancer.start_epoch(epoch)
        for batch in batches:
            with accelerator.accumulate(network):
                session.balancer.identify(positions(batch))
                loss = session.balancer(network(batch[0]), batch[1])
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        session.balancer.end_epoch(epoch)
    return session


def hugging_face(name: str, accumulation: int, **options) -> Session:
    """Hugging Face's Trainer, whose loss function the balancer is."""
    session = Session(name)
    with TemporaryDirectory() as folder:
        trainer_of(session, folder, gradient_accumulation_steps=accumulation, **options).train()
    return session


def trainer_of(session: Session, folder, **options):
    """A trainer of Hugging Face around a session, with the contract's batches in their order."""
    from transformers import TrainingArguments

    from cggm.hosts import BalancedTrainer

    class InOrder(BalancedTrainer):
        def get_train_dataloader(self):
            rows = [{"inputs": inputs, "labels": target} for inputs, target in session.batches]
            return self.accelerator.prepare(DataLoader(rows, batch_size=None))

    defaults = {"num_train_epochs": EPOCHS, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    arguments = {"save_strategy": "no", **defaults, **quiet, **options}
    if not session.balancer.bound:
        session.balancer.bind(session.network)
    return InOrder(
        Named(session.network),
        TrainingArguments(str(folder), **arguments),
        optimizers=(session.optimizer, None),
        balancer=session.balancer,
        identify=lambda inputs: positions((None, inputs["labels"])),
    )


class Named(nn.Module):
    """A network that takes inputs and gives logits by their names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs, labels=None):
        return {"logits": self.network(inputs)}


def torch_state(session: Session) -> dict[str, torch.Tensor]:
    """Weights of a session's network and readings of its method, to be compared bit for bit."""
    readings = {f"reading {name}": value for name, value in session.balancer.readings.items()}
    return {**session.network.state_dict(), **readings}
