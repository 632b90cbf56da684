"""CGGM on a 3-D U-Net of MONAI blocks under MONAI's SupervisedTrainer; volumes are SIMULATED."""

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss, DiceLoss
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn

from cggm import CGGM, BalanceHandler

MODALITIES, CLASSES = ("flair", "t1ce"), 3
BLOCK = ("LeakyReLU", ("instance", {"affine": True}), True)  # activation, norm, bias


class Encoder(nn.Sequential):
    """Two stages: ``(B, 1, D, H, W)`` to features at full and half resolution."""

    def forward(self, volume: Tensor) -> list[Tensor]:  # noqa: D102
        return [full := self[0](volume), self[1](full)]


class Decoder(nn.Module):
    """Features of some modalities to logits ``(B, C, D, H, W)``; of a single one it is a head."""

    def __init__(self, modalities: int = 1) -> None:
        super().__init__()
        self.up = UpCat(3, 16 * modalities, 8 * modalities, 8, *BLOCK)
        self.output_layer = nn.Conv3d(8, CLASSES, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:  # noqa: D102
        return self.output_layer(self.up(features[1], features[0]))


class Network(Decoder):
    """Images ``(B, M, D, H, W)`` to logits; CGGM finds ``encoders`` and ``output_layer``."""

    def __init__(self) -> None:
        super().__init__(len(MODALITIES))
        self.encoders = nn.ModuleDict()
        for name in MODALITIES:
            self.encoders[name] = Encoder(TwoConv(3, 1, 8, *BLOCK), Down(3, 8, 16, *BLOCK))

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        features = [e(x) for e, x in zip(self.encoders.values(), images.split(1, 1), strict=True)]
        return super().forward([torch.cat(parts, dim=1) for parts in zip(*features, strict=True)])


def simulated_case() -> dict[str, Tensor]:
    """A ball within a ball: FLAIR shows the outer one brightly, T1ce the inner one faintly."""
    grid = torch.stack(torch.meshgrid(3 * [torch.arange(16)], indexing="ij"))
    distance = (grid - torch.randint(6, 10, (3, 1, 1, 1))).square().sum(0).sqrt()
    label = (distance < 6).long() + (distance < 4).long()
    image = torch.stack([3.0 * (label > 0), 1.0 * (label > 1)])
    return {"image": image + torch.randn_like(image), "label": label[None]}


def show(engine: Engine) -> None:
    """What CGGM measured in the last step of an epoch."""
    scores, terms = engine.state.balance["score"], engine.state.balance["term"]
    for name, score, term in zip(MODALITIES, scores, terms, strict=True):
        print(f"epoch {engine.state.epoch}  {name:<5}  score {score:.2f}  B {term:.2f}")


torch.manual_seed(0)
network, dice = Network(), DiceLoss(include_background=False, to_onehot_y=True, softmax=True)
trainer = SupervisedTrainer(
    device=torch.device("cpu"),
    max_epochs=5,
    train_data_loader=torch.utils.data.DataLoader([simulated_case() for _ in range(8)], 2),
    network=network,
    optimizer=torch.optim.AdamW(network.parameters(), lr=1e-2),
    loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
)
heads = {name: Decoder() for name in MODALITIES}
balancer = CGGM(heads, trainer.loss_function, score=lambda found, true: 1 - dice(found, true))
BalanceHandler(balancer).attach(trainer)
trainer.add_event_handler(Events.EPOCH_COMPLETED, show)
trainer.run()
