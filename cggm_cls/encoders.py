"""Encoder of one modality of sequences."""

import math

from torch import nn

from cggm_cls.layers import AttentionStack, Dropout, append_token, learned_step, sinusoids
from cggm_cls.sequences import MaskedSequence


class SequenceEncoder(nn.Module):
    """Encodes one modality: projection, positions, a prediction token and a transformer.

    Args:
        features: Features of a step of the input.
        width: Features of a step of the output.
        layers: Transformer layers.
        attention_heads: Heads of each layer.
        dropout: Dropout of what enters the layers and inside them.
    """

    def __init__(
        self,
        features: int,
        width: int,
        layers: int,
        attention_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(features, width)
        self.token = learned_step(width)
        self.dropout = Dropout(dropout)
        self.stack = AttentionStack(layers, width, attention_heads, dropout)

    def forward(self, sequence: MaskedSequence) -> MaskedSequence:
        """The encoded sequence and, behind it, its prediction token: ``(B, T + 1, width)``.

        Args:
            sequence: Values of shape ``(B, T, features)``; no step of it needs to be real.
        """
        values, mask = sequence
        width = self.projection.out_features
        steps = math.sqrt(width) * self.projection(values) + sinusoids(mask, width)
        embedded = append_token(steps.masked_fill(~mask[..., None], 0.0), mask, self.token)
        encoded: MaskedSequence = self.stack(
            embedded._replace(values=self.dropout(embedded.values))
        )
        return encoded
