"""From raw intensities to z-scores of the brain, as a transform of MONAI."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms.transform import MapTransform
from monai.utils.type_conversion import convert_to_dst_type, convert_to_numpy

from scripts.preprocessing import intensity_statistics, prepare_image, zscore


class PrepareImagesd(MapTransform):
    """Z-scores of each channel over its own brain; the background becomes exactly 0.

    The background is the value that surrounds the brain, 0 or any other. ``preprocessing.py`` is
    the code that prepared the images of the training.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the images, shape ``(M, H, W, Z)``, and keep what MONAI knows of them."""
        result = dict(data)
        for key in self.key_iterator(result):
            raw = convert_to_numpy(result[key])
            images = np.stack([prepare_image(image) for image in raw])
            scores = zscore(images, intensity_statistics(images))
            result[key] = convert_to_dst_type(scores, result[key], dtype=scores.dtype)[0]
        return result
