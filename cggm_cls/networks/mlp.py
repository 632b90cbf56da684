"""Network for rows of features: a perceptron per modality, and one that fuses them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cggm.late_fusion import FusionRule
from cggm_cls.data import MaskedSequence
from cggm_cls.networks.layers import Dropout, learned_step
from cggm_cls.networks.transformer import SequenceNetwork


class RowEncoder(nn.Module):
    """Encodes one modality: a perceptron over each step, and the mean over the real ones.

    A sequence without a real step becomes a learned vector.

    Args:
        features: Features of a step of the input.
        width: Features of the output.
        layers: Hidden layers.
        dropout: Dropout behind each of them.
    """

    def __init__(self, features: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = _perceptron(features, width, layers, dropout)
        self.absent = learned_step(width)

    def forward(self, sequence: MaskedSequence) -> Tensor:
        """One vector per sequence, ``(B, width)``.

        Args:
            sequence: Values of shape ``(B, T, features)``; no step of it needs to be real.
        """
        values, mask = sequence
        weights = mask.to(values.dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        steps = self.layers(values)
        vector = torch.einsum("bt,btd->bd", weights.to(steps.dtype), steps)
        return torch.where(mask.any(dim=1, keepdim=True), vector, self.absent.to(vector.dtype))


class RowHead(nn.Module):
    """Head of one modality: predicts from what that modality's encoder returns.

    Args:
        width: Features of the input.
        classes: Number of classes, or ``None`` for regression.
        layers: Hidden layers, one less of which are before the output layer.
        dropout: Dropout behind each of them.
    """

    def __init__(self, width: int, classes: int | None, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.regression = classes is None
        self.hidden = _perceptron(width, width, layers - 1, dropout)
        self.output_layer = nn.Linear(width, 1 if classes is None else classes)

    def forward(self, encoded: Tensor) -> Tensor:
        """Logits of shape ``(B, classes)``, or values of shape ``(B,)``.

        Args:
            encoded: What the encoder returns; detach it to spare the encoder.
        """
        output: Tensor = self.output_layer(self.hidden(encoded)).float()
        return output.squeeze(-1) if self.regression else output


class MultimodalMLP(SequenceNetwork):
    """Perceptron per modality and perceptron over all, for rows of features.

    It takes sequences as well, whose steps it averages: order and time are lost, for which there is
    :class:`~cggm_cls.networks.transformer.MultimodalTransformer`.

    Args:
        widths: Modality to features of a step of its sequences; one encoder each.
        classes: Number of classes, or ``None`` for regression.
        width: Features inside.
        encoder_layers: Hidden layers of each encoder.
        fusion: ``"features"``, or how the predictions of a head for each modality are combined, see
            :func:`cggm.late_fusion.late_rule`.
        fusion_layers: Hidden layers over all features, or layers of each head.
        dropout: Dropout behind each hidden layer of encoders and fusion.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        classes: int | None,
        *,
        width: int = 40,
        encoder_layers: int = 2,
        fusion: FusionRule = "features",
        fusion_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(widths, classes)
        self.width, self.dropout = width, dropout
        for name, features in widths.items():
            self.encoders[name] = RowEncoder(features, width, encoder_layers, dropout)
        if fusion == "features":
            self.fusion = _perceptron(width * len(widths), width, fusion_layers, dropout)
        self._join(fusion, width, fusion_layers)

    def fused(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Input of the output layer, from the vectors of all modalities."""
        vector: Tensor = self.fusion(torch.cat([encoded[n] for n in self.modalities], dim=1))
        return vector

    def heads(self, layers: int = 1, *, dropout: bool = False) -> dict[str, nn.Module]:
        """One head per encoder, of so many layers; see the base."""
        device = next(self.encoders.parameters()).device
        rate = self.dropout if dropout else 0.0
        return {
            n: RowHead(self.width, self.classes, layers, rate).to(device) for n in self.encoders
        }


class _Hidden(nn.Module):
    """A hidden layer, whose input is normalized by sample.

    Args:
        features: Of the input.
        width: Of the output.
        dropout: Behind it.
    """

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        hidden: Tensor = self.dropout(F.relu(self.norm(self.linear(values))))
        return hidden


def _perceptron(features: int, width: int, layers: int, dropout: float) -> nn.Sequential:
    sizes = [features, *[width] * (layers - 1)][:layers]
    return nn.Sequential(*(_Hidden(size, width, dropout) for size in sizes))
