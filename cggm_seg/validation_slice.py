"""A fixed slice of the validation cases, drawn anew at each validation."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.ImageColor import getrgb
from torch.nn import functional as F

from cggm.modes import evaluating
from cggm.runs.logs import Picture
from cggm_seg.axial import COLORS, gray_levels, shown_modalities
from cggm_seg.cache import SliceCache
from cggm_seg.networks import OUTPUT_STRIDE, MultiEncoderDeepLabV3Plus

# Each outline is that of a nested region, drawn from the largest to the smallest.
_OUTLINES = {"ED": (1, 2, 3), "ET": (1, 3), "NCR": (1,)}
_ZOOM = 2  # pixels per voxel, so that an outline hides half a voxel
_GAP = 4  # pixels between panels


class ValidationSlice:
    """The axial slice with the most tumor of one case; the middle one of a case without tumor.

    Args:
        network: Seen in eval mode, without gradients; its mode is restored.
        cache: Where the slice is read.
        case_id: The case.
    """

    def __init__(self, network: MultiEncoderDeepLabV3Plus, cache: SliceCache, case_id: str) -> None:
        areas = cache.class_counts(case_id)[:, 1:].sum(1)
        self._depth = int(areas.argmax()) if areas.any() else len(areas) // 2
        self._network = network
        self._images, self._truth = cache.read(case_id, self._depth)
        self._name = f"validation/{case_id}-slice-{self._depth}/image-truth-prediction"

    def __call__(self) -> Picture:
        """FLAIR and T1ce (else the first modality) plain, with truth, and with prediction."""
        names = self._network.modalities
        shown = [names.index(name) for name in shown_modalities(names)]
        prediction = self._predict()
        rows = [_row(self._images[k], (None, self._truth, prediction)) for k in shown]
        return Picture(self._name, np.concatenate(rows))

    def _predict(self) -> NDArray[np.int64]:
        height, width = self._truth.shape
        device = next(self._network.parameters()).device
        padding = (0, -width % OUTPUT_STRIDE, 0, -height % OUTPUT_STRIDE)
        images = F.pad(torch.from_numpy(self._images)[None], padding).to(device)
        with evaluating(self._network):
            classes = self._network(images)[0, :, :height, :width].argmax(0)
        return np.asarray(classes.cpu())


def _row(image: np.ndarray, labels: tuple[np.ndarray | None, ...]) -> NDArray[np.uint8]:
    """Panels side by side, anterior up and the patient's left on the right, as in radiology."""
    levels = (255 * gray_levels(image)).astype(np.uint8)
    gray = _enlarged(levels.T)[..., None].repeat(3, -1)
    panels = [gray if own is None else _outlined(gray, _enlarged(own.T)) for own in labels]
    framed = [np.pad(panel, ((0, _GAP), (0, _GAP), (0, 0))) for panel in panels]
    return np.concatenate(framed, axis=1)


def _enlarged(slice_: np.ndarray) -> np.ndarray:
    return slice_.repeat(_ZOOM, 0).repeat(_ZOOM, 1)


def _outlined(gray: NDArray[np.uint8], labels: np.ndarray) -> NDArray[np.uint8]:
    picture = gray.copy()
    for name, members in _OUTLINES.items():
        picture[_outline(np.isin(labels, members))] = getrgb(COLORS[name])
    return picture


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask that touch a pixel outside of it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
