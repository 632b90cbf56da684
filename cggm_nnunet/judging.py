"""Heads that judge one modality of an nnU-Net training, their loss and their Dice."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

_COARSE = 2  # the stage at which heads predict: a quarter of the resolution


class CoarseHead(nn.Module):
    """Light head of one modality, which predicts at a quarter of the resolution.

    The maps of that stage and of all coarser ones are projected to the width of the network's last
    layer, added up and mixed by one convolution.

    Args:
        widths: Channels of the encoder's stages, finest first.
        output_layer: The network's, whose shape the head's own has.
    """

    def __init__(self, widths: Sequence[int], output_layer: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        convolution, width = type(output_layer), output_layer.in_channels
        self.stage = max(0, min(_COARSE, len(widths) - 2))
        self.projections = nn.ModuleList(convolution(w, width, 1) for w in widths[self.stage :])
        self.mix = nn.Sequential(
            nn.GroupNorm(1, width),
            nn.LeakyReLU(),
            convolution(width, width, 3, padding=1),
            nn.GroupNorm(1, width),
            nn.LeakyReLU(),
        )
        self.output_layer = convolution(width, output_layer.out_channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits at the head's stage, ``(B, C, *S)``.

        Args:
            features: Maps of the encoder's stages, finest first.
        """
        maps = features[self.stage :]
        size = maps[0].shape[2:]
        projected = [p(x) for p, x in zip(self.projections, maps, strict=True)]
        total = projected[0]
        for coarse in projected[1:]:
            total = total + interpolate(coarse, size)
        return self.output_layer(self.mix(total))


class LevelLoss:
    """nnU-Net's loss, of the network's predictions and of a head's single one.

    Args:
        whole: Loss of what the network returns: a list of predictions under deep supervision.
        single: Loss of one prediction.
    """

    def __init__(
        self, whole: Callable[[Any, Any], Tensor], single: Callable[[Any, Any], Tensor]
    ) -> None:
        self.whole, self.single = whole, single

    def __call__(self, prediction: Any, target: Any) -> Tensor:  # noqa: ANN401
        """The loss, a scalar.

        Args:
            prediction: What the network returns, or a head's logits.
            target: Label maps ``(B, 1, *S)`` or regions ``(B, R, *S)``, one for each level under
                deep supervision.
        """
        if isinstance(prediction, Tensor):
            return self.single(*at_one_level(prediction, target))
        return self.whole(prediction, target)


class PooledDice:
    """Dice of a hard prediction over the whole batch, as counts that may be added up.

    Args:
        regions: Whether the target holds a channel for each region, instead of one of labels.
        ignored: The label that is not scored, of which regions have a last channel of their own;
            ``None`` where there is none.
    """

    def __init__(self, *, regions: bool, ignored: int | None) -> None:
        self.regions, self.ignored = regions, ignored

    def __call__(self, prediction: Any, target: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        """Twice the true positives, what is found and wanted together, and what is wanted.

        Args:
            prediction: A head's logits ``(B, C, *S)``, or what the network returns.
            target: As of :class:`LevelLoss`.

        Returns:
            Float32, shape ``(K,)`` each, of the K regions or classes but the background.
        """
        logits = prediction if isinstance(prediction, Tensor) else prediction[0]
        logits, wanted = at_one_level(logits, target)
        found, wanted, scored = self._masks(logits, wanted)
        axes = [0, *range(2, logits.ndim)]
        counts = [(m & scored).sum(axes).float() for m in (found & wanted, found, wanted)]
        return 2 * counts[0], counts[1] + counts[2], counts[2]

    def _masks(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.regions:
            found, target = logits > 0, target.bool()
            if self.ignored is None:
                return found, target, torch.ones_like(target[:, :1])
            return found, target[:, :-1], ~target[:, -1:]
        classes = torch.arange(1, logits.shape[1], device=logits.device)
        classes = classes.reshape(-1, *[1] * (logits.ndim - 2))
        labels = target.long()
        scored = torch.ones_like(labels, dtype=torch.bool)
        if self.ignored is not None:
            scored = labels != self.ignored
        return logits.argmax(1, keepdim=True) == classes, labels == classes, scored


def at_one_level(prediction: Tensor, target: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """A prediction and the target of its resolution; without one, the prediction is resampled.

    Args:
        prediction: Logits ``(B, C, *S)``.
        target: A tensor ``(B, K, *S)``, or a sequence of such by level, finest first.
    """
    levels = [target] if isinstance(target, Tensor) else list(target)
    for level in levels:
        if level.shape[2:] == prediction.shape[2:]:
            return prediction, level
    mode = "bilinear" if prediction.ndim == 4 else "trilinear"
    return interpolate(prediction, levels[0].shape[2:], mode=mode), levels[0]
