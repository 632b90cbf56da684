"""Layers of attention over padded sequences, which padding never enters, and their readouts."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cggm_cls.data import MaskedSequence

Readout = Literal["token", "first", "mean"]

# A dropout mask takes 16 random bits per element, four elements to a random number.
_LEVELS = 2**16


class Dropouts(NamedTuple):
    """Probabilities of dropping an element, by place.

    Attributes:
        attention: Of attention weights, which one number for all places leaves alone: torch's fused
            attention on the processor cannot drop them, and without it a layer over 154 steps takes
            1.6 times the time.
        hidden: Of a layer's hidden layer, behind its ReLU.
        embedding: Of what enters the layers.
        residual: Of the two residual branches of a layer.
        output: Of the residual head in front of the output layer.
    """

    attention: float = 0.0
    hidden: float = 0.0
    embedding: float = 0.0
    residual: float = 0.0
    output: float = 0.0

    @classmethod
    def of(cls, rates: "Rates") -> "Dropouts":
        """Probabilities from one number for all places but attention, or from one for each place.

        Args:
            rates: The number, or place to number, of which places left out drop nothing; or what
                this returned.

        Raises:
            ValueError: If a place is unknown, or a number is not in [0, 1).
        """
        if isinstance(rates, Dropouts):
            return rates
        if not isinstance(rates, Mapping):
            rates = dict.fromkeys(cls._fields[1:], rates)
        unknown = [place for place in rates if place not in cls._fields]
        if unknown or not all(0 <= rate < 1 for rate in rates.values()):
            raise ValueError(
                f"Expected dropout from 0 to below 1, or that of {', '.join(cls._fields)}, but got "
                f"{dict(rates)}."
            )
        return cls(**rates)


Rates = float | Mapping[str, float] | Dropouts
"""What :meth:`Dropouts.of` takes."""


class Dropout(nn.Dropout):
    """Dropout whose random numbers cost the processor less than torch's.

    With torch's, a training step of a network this narrow takes 1.1 to 1.2 times the time. The
    probability is rounded to a multiple of 2^-16; elsewhere than on the processor this is
    ``nn.Dropout``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Input with elements dropped while training, same shape."""
        dropped = round(self.p * _LEVELS)
        if not self.training or input.device.type != "cpu" or dropped in (0, _LEVELS):
            return super().forward(input)
        numbers = torch.empty(math.ceil(input.numel() / 4), dtype=torch.int64)
        draws = numbers.random_(-(2**63), None).view(torch.int16)[: input.numel()]
        kept = draws.view(input.shape) >= dropped - _LEVELS // 2
        return input * kept.to(input.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class AttentionLayer(nn.TransformerEncoderLayer):
    """A pre-norm transformer layer that takes its mask as ``True`` for real steps.

    Modules, initialization and outputs are those of ``nn.TransformerEncoderLayer``. It attends
    without transposing to time-major order, and for some queries alone where only they are read.

    Args:
        width: Features of a step.
        attention_heads: How many heads; they divide ``width``.
        dropout: Probabilities of dropping an element.
    """

    def __init__(self, width: int, attention_heads: int, dropout: Rates) -> None:
        super().__init__(width, attention_heads, 4 * width, batch_first=True, norm_first=True)
        rates = Dropouts.of(dropout)
        self.self_attn.dropout = rates.attention
        self.dropout = Dropout(rates.hidden)
        self.dropout1, self.dropout2 = Dropout(rates.residual), Dropout(rates.residual)

    def forward(  # type: ignore[override]
        self, values: Tensor, mask: Tensor, queries: Tensor | None = None
    ) -> Tensor:
        """Steps that have looked at the real steps of their sequence.

        Args:
            values: Shape ``(B, T, D)``.
            mask: Bool, shape ``(B, T)``, true where a step is real: at least one of each sequence.
            queries: The steps among ``values`` that are asked for, shape ``(B, Q, D)``; all of
                them where ``None``.

        Returns:
            Shape ``(B, T, D)``, or ``(B, Q, D)``.
        """
        # Pre-norm: what enters a branch is normalized, what it is added to is not.
        keys = self.norm1(values)
        steps, asking = (values, keys) if queries is None else (queries, self.norm1(queries))
        steps = steps + self.dropout1(self.attend(asking, keys, mask))
        hidden = self.dropout(F.relu(self.linear1(self.norm2(steps))))
        return steps + self.dropout2(self.linear2(hidden))

    def attend(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Multi-head attention of queries to real keys, both normalized.

        Args:
            queries: Shape ``(B, Q, D)``; the keys themselves where all steps ask.
            keys: Shape ``(B, T, D)``.
            mask: Bool, shape ``(B, T)``, true where a key is real.

        Returns:
            Shape ``(B, Q, D)``.
        """
        weight, bias = self.self_attn.in_proj_weight, self.self_attn.in_proj_bias
        if queries is keys:  # all steps ask: one product for query, key and value
            query, key, value = F.linear(keys, weight, bias).chunk(3, dim=-1)
        else:
            width = queries.shape[-1]
            query = F.linear(queries, weight[:width], bias[:width])
            key, value = F.linear(keys, weight[width:], bias[width:]).chunk(2, dim=-1)
        query, key, value = map(self.split_heads, (query, key, value))
        dropped = self.self_attn.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, mask[:, None, None], dropped)
        return self.self_attn.out_proj(attended.transpose(1, 2).flatten(2))

    def split_heads(self, values: Tensor) -> Tensor:
        """Heads in front of steps, ``(B, T, D)`` to ``(B, H, T, D / H)``.

        Args:
            values: Queries, keys or values of all heads side by side.
        """
        return values.unflatten(-1, (self.self_attn.num_heads, -1)).transpose(1, 2)


class AttentionStack(nn.Module):
    """Layers, each initialized by itself, and the norm that pre-norm layers need behind them.

    Args:
        layers: How many, at least one.
        width: Features of a step.
        attention_heads: Heads of each layer.
        dropout: Dropout of each layer.
    """

    def __init__(self, layers: int, width: int, attention_heads: int, dropout: Rates) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            AttentionLayer(width, attention_heads, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, sequence: MaskedSequence) -> MaskedSequence:
        """Every step, of the shape of the input and with its mask.

        Args:
            sequence: Values of shape ``(B, T, D)``, at least one real step each.
        """
        values, mask = sequence
        for layer in self.layers:
            values = layer(values, mask)
        return MaskedSequence(self.norm(values), mask)

    def read(self, sequence: MaskedSequence, readout: Readout) -> Tensor:
        """One vector per sequence, shape ``(B, D)``; the last layer computes nothing else.

        Args:
            sequence: Ends in a real step, the prediction token.
            readout: ``"token"``, ``"first"`` (real step, as the released code) or ``"mean"`` (of
                all real steps).
        """
        values, mask = sequence
        *body, last = self.layers
        for layer in body:
            values = layer(values, mask)
        if readout == "mean":
            # Padded steps weigh nothing, but what they hold must be finite: 0 * inf is NaN.
            weights = mask.to(values.dtype) / mask.sum(dim=1, keepdim=True)
            return torch.einsum("bt,btd->bd", weights, self.norm(last(values, mask)))
        # Of a token or a first step the last layer needs one query instead of T.
        first = mask.int().argmax(dim=1)[:, None, None]
        read = values[:, -1:] if readout == "token" else values.take_along_dim(first, dim=1)
        vector: Tensor = self.norm(last(values, mask, read))
        return vector[:, 0]


def learned_step(width: int) -> nn.Parameter:
    """A step to be learned, which starts random and of length one.

    Args:
        width: Features of a step.
    """
    return nn.Parameter(torch.randn(width) / math.sqrt(width))


def append_token(values: Tensor, mask: Tensor, token: Tensor) -> MaskedSequence:
    """A sequence with a learned step behind it, which is real even where no other is.

    Args:
        values: Shape ``(B, T, D)``.
        mask: Shape ``(B, T)``.
        token: Shape ``(D,)``.
    """
    tokens = token.to(values.dtype).expand(len(values), 1, -1)
    return MaskedSequence(torch.cat([values, tokens], dim=1), F.pad(mask, (0, 1), value=True))


def sinusoids(mask: Tensor, width: int) -> Tensor:
    """Sinusoidal encoding of each step's place among the real steps of its sequence.

    Args:
        mask: Shape ``(B, T)``; what padded steps get has no meaning.
        width: Features of a step.

    Returns:
        Shape ``(B, T, width)``: sines and then cosines of falling frequencies.
    """
    half = math.ceil(width / 2)
    rates = 10000.0 ** (-torch.arange(half, device=mask.device) / half)
    angles = torch.arange(mask.shape[1], device=mask.device)[:, None] * rates
    table = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
    return F.embedding((mask.cumsum(dim=1) - 1).clamp(min=0), table)


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
        dropout: Rates,
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(features, width)
        self.token = learned_step(width)
        self.dropout = Dropout(Dropouts.of(dropout).embedding)
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


class AttentionHead(nn.Module):
    """Head of one modality: predicts from that modality's encoded sequence alone.

    It is read like its network. Where one step is read, the last layer attends for that step only,
    which makes a head of one layer nearly free; the released code's has two. Unless told otherwise
    it drops nothing, so that it draws no random number and the network's dropout is the same as
    without heads.

    Args:
        width: Features of a step.
        classes: Number of classes, or ``None`` for regression.
        layers: Attention layers.
        attention_heads: Heads of each layer.
        readout: See :meth:`AttentionStack.read`.
        dropout: Dropout of each layer.
    """

    def __init__(
        self,
        width: int,
        classes: int | None,
        *,
        layers: int,
        attention_heads: int,
        readout: Readout,
        dropout: Rates = 0.0,
    ) -> None:
        super().__init__()
        self.regression = classes is None
        self.readout: Readout = readout
        self.stack = AttentionStack(layers, width, attention_heads, dropout)
        self.output_layer = nn.Linear(width, 1 if classes is None else classes)

    def forward(self, encoded: MaskedSequence) -> Tensor:
        """Logits of shape ``(B, classes)``, or values of shape ``(B,)``, as the network's.

        Args:
            encoded: What the modality's encoder returns; detach it to spare the encoder.
        """
        output: Tensor = self.output_layer(self.stack.read(encoded, self.readout)).float()
        return output.squeeze(-1) if self.regression else output
