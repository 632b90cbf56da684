"""Options of a training on sequences: network, optimizer, balancing method and course.

Every field is an option of the training scripts, such as ``--network.width 40``. A data set with
options of its own adds them to :class:`SequenceConfig` in its script.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cggm.runs import BalancerConfig, RunConfig, require

if TYPE_CHECKING:
    from cggm_cls.networks import SequenceNetwork


DROPOUT_PLACES = ("attention", "hidden", "embedding", "residual", "output")


@dataclass(frozen=True)
class SequenceNetworkConfig:
    """The network: a multimodal transformer, or perceptrons.

    Args:
        kind: A transformer per modality and one over all, or perceptrons, which average the steps
            of a sequence: for rows of features.
        width: Features of a step inside the network, a multiple of the attention heads.
        attention_heads: Heads of each attention layer; of no meaning for perceptrons.
        encoder_layers: Layers of each modality's encoder.
        fusion: What is fused: features, by such layers, or the predictions of a head for each
            modality, by this rule, as UnimodalEnsemble, QMF, ReconBoost and MLA need it.
        fusion_layers: Layers over the concatenated sequences, or of each head.
        dropout: Dropout probability of embeddings, residual branches, hidden layers and the
            residual head; or, for a transformer, that of each place: attention, hidden, embedding,
            residual, output.
        readout: What is read of a transformer: the prediction token, the first real step, or the
            mean.
    """

    kind: Literal["transformer", "mlp"] = "transformer"
    width: int = 40
    attention_heads: int = 5
    encoder_layers: int = 5
    fusion: Literal["features", "average", "sum", "energy", "entropy"] = "features"
    fusion_layers: int = 3
    dropout: float | dict[str, float] = 0.1
    readout: Literal["token", "first", "mean"] = "token"

    def __post_init__(self) -> None:
        for name in ("width", "attention_heads", "encoder_layers", "fusion_layers"):
            value = getattr(self, name)
            require(value >= 1, f"network.{name}", "of at least 1", value)
        heads = self.attention_heads
        fits = self.width % heads == 0 and self.width % 2 == 0
        require(fits, "network.width", f"to be even and a multiple of {heads}", self.width)
        places = isinstance(self.dropout, dict)
        rates = self.dropout if isinstance(self.dropout, dict) else {"all": self.dropout}
        known = not places or (self.kind == "transformer" and set(rates) <= set(DROPOUT_PLACES))
        fits = known and all(0 <= rate < 1 for rate in rates.values())
        expected = f"from 0 to below 1; a transformer's may be by {', '.join(DROPOUT_PLACES)}"
        require(fits, "network.dropout", expected, self.dropout)

    def build(self, widths: Mapping[str, int], classes: int | None) -> "SequenceNetwork":
        """The network, with random weights.

        Args:
            widths: Modality to features of a step.
            classes: Number of classes, ``None`` for a regression.
        """
        from cggm_cls.networks import MultimodalMLP, MultimodalTransformer

        shared: dict[str, Any] = {
            "width": self.width,
            "encoder_layers": self.encoder_layers,
            "fusion": self.fusion,
            "fusion_layers": self.fusion_layers,
            "dropout": self.dropout,
        }
        if self.kind == "mlp":
            return MultimodalMLP(widths, classes, **shared)
        return MultimodalTransformer(
            widths,
            classes,
            attention_heads=self.attention_heads,
            readout=self.readout,
            **shared,
        )


@dataclass(frozen=True)
class AdamConfig:
    """Adam or AdamW, with clipping and a rate that falls on a plateau.

    Args:
        name: The optimizer of network and heads.
        lr: Learning rate of the network.
        weight_decay: Weight decay of the network.
        head_lr: Learning rate of the heads.
        head_weight_decay: Weight decay of the heads.
        clip_norm: Greatest norm of the network's gradient; 0 does not clip.
        plateau: What the rate falls on: the score that selects the checkpoint, or the loss, as in
            the released code, both of the validation split.
        patience: Validations without a better one before the learning rate falls to a tenth.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    head_lr: float = 5e-4
    head_weight_decay: float = 0.0
    clip_norm: float = 0.8
    plateau: Literal["score", "loss"] = "score"
    patience: int = 10

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "head_lr", "head_weight_decay", "clip_norm", "patience"):
            value = getattr(self, name)
            require(value >= 0, f"optimizer.{name}", "of at least 0", value)


@dataclass(frozen=True)
class SequenceBalancerConfig(BalancerConfig):
    """The balancing method, with the heads that it may use.

    Args:
        head_layers: Layers of a head, of attention for a transformer.
        head_dropout: Whether heads drop as the network does, as the released ones. The network's
            own dropout then draws other numbers than without heads.
    """

    head_layers: int = 1
    head_dropout: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = self.head_layers
        require(1 <= layers <= 2, "balancer.head_layers", "of 1 or 2", layers)


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(RunConfig):
    """A training on sequences.

    Args:
        seeds: Trainings with this many consecutive seeds, from --seed on.
        batch_size: Samples per batch.
        threads: Processor threads; as many as there are cores where not given.
        subsets: Whether the test split is evaluated for all subsets of modalities too.
        network: The network.
        optimizer: Adam or AdamW.
        balancer: The balancing method.
    """

    may_change: ClassVar[frozenset[str]] = RunConfig.may_change | {"seeds", "threads", "subsets"}
    seeds: int = field(default=1, metadata={"metavar": "N"})
    batch_size: int = 64
    threads: int | None = field(default=None, metadata={"metavar": "N"})
    subsets: bool = True
    network: SequenceNetworkConfig = field(default_factory=SequenceNetworkConfig)
    optimizer: AdamConfig = field(default_factory=AdamConfig)
    balancer: SequenceBalancerConfig = field(default_factory=SequenceBalancerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, name, "of at least 1", value)
        threads = self.threads
        require(threads is None or threads >= 1, "threads", "of at least 1", threads)
        fits = self.seed + self.seeds <= 2**32
        require(fits, "seeds", "so that every seed is below 2**32", self.seeds)
