"""Per-modality heads of CGGM for the network on sequences; they exist in training only."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from cggm_cls.data import MaskedSequence
from cggm_cls.networks.layers import AttentionStack, Readout

if TYPE_CHECKING:
    from cggm_cls.networks.transformer import MultimodalTransformer


class AttentionHead(nn.Module):
    """Head of one modality: predicts from that modality's encoded sequence alone.

    It is read like its network. Where one step is read, the last layer attends for that step only,
    which makes a head of one layer nearly free; the released code's has two. It drops nothing, so
    that it draws no random number and the network's dropout is the same as without heads.

    Args:
        width: Features of a step.
        classes: Number of classes, or ``None`` for regression.
        layers: Attention layers.
        attention_heads: Heads of each layer.
        readout: See :class:`cggm_cls.networks.transformer.MultimodalTransformer`.
    """

    def __init__(
        self,
        width: int,
        classes: int | None,
        *,
        layers: int,
        attention_heads: int,
        readout: Readout,
    ) -> None:
        super().__init__()
        self.regression = classes is None
        self.readout: Readout = readout
        self.stack = AttentionStack(layers, width, attention_heads, dropout=0.0)
        self.output_layer = nn.Linear(width, 1 if classes is None else classes)

    def forward(self, encoded: MaskedSequence) -> Tensor:
        """Logits of shape ``(B, classes)``, or values of shape ``(B,)``, as the network's.

        Args:
            encoded: What the modality's encoder returns; detach it to spare the encoder.
        """
        output: Tensor = self.output_layer(self.stack.read(encoded, self.readout)).float()
        return output.squeeze(-1) if self.regression else output


def unimodal_heads(
    network: "MultimodalTransformer", *, layers: int = 1
) -> dict[str, AttentionHead]:
    """One head per encoder of a network, in the order of its encoders.

    Args:
        network: The network whose features the heads read.
        layers: Attention layers of each head.

    Returns:
        Heads by modality, on the device of the network.
    """
    device = next(network.parameters()).device
    return {
        name: AttentionHead(
            network.width,
            network.classes,
            layers=layers,
            attention_heads=network.attention_heads,
            readout=network.readout,
        ).to(device)
        for name in network.encoders
    }
