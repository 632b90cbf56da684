"""Network for sequences: a transformer per modality, and one that fuses them or a head for each."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cggm.late_fusion import FusionRule, LateFusion, late_rule
from cggm_cls.data import MaskedSequence
from cggm_cls.networks.layers import (
    AttentionHead,
    AttentionStack,
    Dropout,
    Dropouts,
    Rates,
    Readout,
    SequenceEncoder,
    append_token,
    learned_step,
)

Sequences = Mapping[str, MaskedSequence]


class Fusion(nn.Module):
    """Joins the encoded sequences of all modalities on time and reads one vector from them.

    Args:
        modalities: Names of the modalities.
        width: Features of a step.
        layers: Transformer layers.
        attention_heads: Heads of each layer.
        dropout: Dropout of what enters the layers, inside them and in the residual head.
        readout: See :class:`MultimodalTransformer`.
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        width: int,
        layers: int,
        attention_heads: int,
        dropout: Rates,
        readout: Readout,
    ) -> None:
        super().__init__()
        self.readout = readout
        self.embeddings = nn.ParameterDict({name: learned_step(width) for name in modalities})
        self.token = learned_step(width)
        self.dropout = Dropout(Dropouts.of(dropout).embedding)
        self.stack = AttentionStack(layers, width, attention_heads, dropout)
        self.hidden = nn.Linear(width, width)
        self.hidden_dropout = Dropout(Dropouts.of(dropout).output)
        self.residual = nn.Linear(width, width)

    def forward(self, encoded: Sequences) -> Tensor:
        """Input of the output layer, shape ``(B, width)``.

        Args:
            encoded: What the encoders return, by modality.
        """
        # The embedding of a modality tells its steps from the others' once all are in one sequence.
        parts = [encoded[name].values + step for name, step in self.embeddings.items()]
        masks = [encoded[name].mask for name in self.embeddings]
        steps, mask = append_token(torch.cat(parts, dim=1), torch.cat(masks, dim=1), self.token)
        read = self.stack.read(MaskedSequence(self.dropout(steps), mask), self.readout)
        vector: Tensor = read + self.residual(self.hidden_dropout(F.relu(self.hidden(read))))
        return vector


class SequenceNetwork(nn.Module):
    """What networks for sequences have in common: one encoder per modality, and what joins them.

    Args:
        widths: Modality to features of a step of its sequences; one encoder each.
        classes: Number of classes, or ``None`` for regression.

    Attributes:
        modalities: Names of the modalities, in order.
        encoders: Modality to encoder.
        output_layer: Linear, or a :class:`cggm.late_fusion.LateFusion` of heads.

    Raises:
        ValueError: If there is no modality.
    """

    output_layer: nn.Linear | LateFusion

    def __init__(self, widths: Mapping[str, int], classes: int | None) -> None:
        super().__init__()
        if not widths:
            raise ValueError("Expected `widths` to name at least one modality, but it is empty.")
        self.modalities = tuple(widths)
        self.widths = dict(widths)
        self.classes = classes
        self.encoders = nn.ModuleDict()

    def heads(self, layers: int = 1, *, dropout: bool = False) -> dict[str, nn.Module]:
        """One head per encoder, in their order, on the device of the network.

        Args:
            layers: Hidden layers of each head.
            dropout: Whether heads drop as the network does, and draw random numbers for it.
        """
        raise NotImplementedError

    def fused(self, encoded: Mapping[str, Any]) -> Tensor:
        """Input of a linear output layer, ``(B, width)``, from what the encoders return."""
        raise NotImplementedError

    def forward(self, inputs: Sequences) -> Tensor:
        """Logits of shape ``(B, classes)``, or values of shape ``(B,)``; float32 under autocast.

        Args:
            inputs: Modality to sequences, lengths may differ between modalities.

        Raises:
            ValueError: If a modality is missing, unknown or of another width.
        """
        return self.decode(self.encode(inputs))

    def encode(self, inputs: Sequences) -> dict[str, Any]:
        """What the encoder of each modality returns; as ``forward``."""
        self._check_inputs(inputs)
        return {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}

    def decode(self, encoded: Mapping[str, Any]) -> Tensor:
        """Prediction from what the encoders of all modalities return, see ``forward``."""
        if isinstance(self.output_layer, LateFusion):
            return self.output_layer.combine(self.output_layer(encoded))
        output: Tensor = self.output_layer(self.fused(encoded)).float()
        return output.squeeze(-1) if self.classes is None else output

    def _join(self, fusion: FusionRule, width: int, layers: int) -> None:
        """Make the output layer: linear, or the heads of a late fusion of so many layers."""
        if fusion == "features":
            self.output_layer = nn.Linear(width, 1 if self.classes is None else self.classes)
        else:
            rule = late_rule(fusion, self.classes is None)
            self.output_layer = LateFusion(self.heads(layers), rule, shared=rule == "entropy")

    def _check_inputs(self, inputs: Sequences) -> None:
        if set(inputs) != set(self.modalities):
            missing = [name for name in self.modalities if name not in inputs]
            unknown = [name for name in inputs if name not in self.modalities]
            raise ValueError(
                f"Expected sequences of the modalities {list(self.modalities)}, but {missing} are "
                f"missing and {unknown} unknown. Give a missing one as a sequence whose mask is "
                "false throughout."
            )
        for name, expected in self.widths.items():
            found = inputs[name].values.shape[-1]
            if found != expected:
                raise ValueError(
                    f"Expected steps of {expected} features in modality {name!r}, but got {found}. "
                    "Build the network for the widths of the data."
                )


class MultimodalTransformer(SequenceNetwork):
    """Transformer per modality and transformer over all, the network of CGGM (Guo et al., 2024).

    Padding is never looked at, wherever it is and whatever finite it holds. A missing modality is
    a sequence without a real step. Differences to the released code, which masks nothing: learned
    prediction tokens and modality embeddings, positions by true step, and, unless told by place, no
    dropout of attention weights (see :class:`cggm_cls.networks.layers.Dropouts`). Meant for narrow
    steps; time and memory of the fusion grow with the square of the modalities' joint length.

    Args:
        widths: Modality to features of a step of its sequences; one encoder each.
        classes: Number of classes, or ``None`` for regression.
        width: Features of a step inside, a multiple of ``attention_heads``.
        attention_heads: Heads of each layer.
        encoder_layers: Layers of each encoder; 5 for CMU-MOSI, 4 for IEMOCAP and Food-101.
        fusion: ``"features"``, or how the predictions of a head for each modality are combined, see
            :func:`cggm.late_fusion.late_rule`. A missing modality then still votes, with what its
            head says of an empty sequence.
        fusion_layers: Layers of the fusion, or of each head; the paper's are
            ``encoder_layers - 2``.
        dropout: Dropout of embeddings, residual branches, hidden layers and the residual head, or
            that of each place, see :meth:`cggm_cls.networks.layers.Dropouts.of`.
        readout: What the prediction is read from: the fusion's ``"token"``, the ``"first"`` real
            step of the first modality (the released code) or the ``"mean"`` of all real steps.

    Attributes:
        modalities: Names of the modalities, in order.
        encoders: Modality to ``SequenceEncoder``.
        output_layer: Linear, of weight shape ``(classes, width)``, or ``(1, width)``; where
            predictions are fused, a :class:`cggm.late_fusion.LateFusion`.

    Raises:
        ValueError: If there is no modality, or ``readout`` is unknown.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        classes: int | None,
        *,
        width: int = 40,
        attention_heads: int = 5,
        encoder_layers: int = 5,
        fusion: FusionRule = "features",
        fusion_layers: int = 3,
        dropout: Rates = 0.1,
        readout: Readout = "token",
    ) -> None:
        super().__init__(widths, classes)
        if readout not in ("token", "first", "mean"):
            raise ValueError(
                f"Expected `readout` to be 'token', 'first' or 'mean', but got {readout!r}."
            )
        self.width = width
        self.attention_heads = attention_heads
        self.dropout = Dropouts.of(dropout)
        self.readout: Readout = readout
        for name, features in widths.items():
            self.encoders[name] = SequenceEncoder(
                features, width, encoder_layers, attention_heads, self.dropout
            )
        if fusion == "features":
            self.fusion = Fusion(
                self.modalities, width, fusion_layers, attention_heads, self.dropout, readout
            )
        self._join(fusion, width, fusion_layers)

    def fused(self, encoded: Sequences) -> Tensor:
        """Input of the output layer, from the encoded sequences."""
        vector: Tensor = self.fusion(encoded)
        return vector

    def heads(self, layers: int = 1, *, dropout: bool = False) -> dict[str, nn.Module]:
        """One head per encoder, of so many attention layers; see the base."""
        device = next(self.encoders.parameters()).device
        return {
            name: AttentionHead(
                self.width,
                self.classes,
                layers=layers,
                attention_heads=self.attention_heads,
                readout=self.readout,
                dropout=self.dropout if dropout else 0.0,
            ).to(device)
            for name in self.encoders
        }


def sequence_heads(
    network: SequenceNetwork, *, layers: int = 1, dropout: bool = False
) -> dict[str, nn.Module]:
    """One head per encoder of a network, in the order of its encoders.

    Args:
        network: The network whose features the heads read.
        layers: Hidden layers of each head, of attention for a transformer.
        dropout: Whether heads drop as the network does.

    Returns:
        Heads by modality, on the device of the network.
    """
    return network.heads(layers, dropout=dropout)
