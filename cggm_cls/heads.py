"""Per-modality heads of CGGM for the network on sequences; they exist in training only."""

from torch import Tensor, nn

from cggm_cls.layers import AttentionStack
from cggm_cls.networks import MultimodalTransformer
from cggm_cls.sequences import MaskedSequence


class AttentionHead(nn.Module):
    """Head of one modality: predicts from that modality's encoded sequence alone.

    It is read like its network. Where one step is read, the last layer attends for that step only,
    which makes a head of one layer nearly free; the released code's has two. It drops nothing, so
    that it draws no random number and the network's dropout is the same as without heads.

    Args:
        network: The network whose width, attention and readout the head takes.
        layers: Attention layers.
    """

    def __init__(self, network: MultimodalTransformer, layers: int) -> None:
        super().__init__()
        last = network.output_layer
        self.regression = network.classes is None
        self.readout = network.readout
        self.stack = AttentionStack(layers, last.in_features, network.attention_heads, dropout=0.0)
        self.output_layer = nn.Linear(last.in_features, last.out_features)

    def forward(self, encoded: MaskedSequence) -> Tensor:
        """Logits of shape ``(B, classes)``, or values of shape ``(B,)``, as the network's.

        Args:
            encoded: What the modality's encoder returns; detach it to spare the encoder.
        """
        output: Tensor = self.output_layer(self.stack.read(encoded, self.readout)).float()
        return output.squeeze(-1) if self.regression else output


def unimodal_heads(network: MultimodalTransformer, *, layers: int = 1) -> dict[str, AttentionHead]:
    """One head per encoder of a network, in the order of its encoders.

    Args:
        network: The network whose features the heads read.
        layers: Attention layers of each head.

    Returns:
        Heads by modality, on the device of the network.
    """
    device = network.output_layer.weight.device
    return {name: AttentionHead(network, layers).to(device) for name in network.encoders}
