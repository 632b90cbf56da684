"""Images that nobody vouches for: decoding within bounds, and random variations of them."""

import hashlib
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from cggm.errors import DataError

MAX_PIXELS = 25_000_000
"""Pixels of the largest image that is decoded, at 4 bytes each and twice at most."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_LEAST_CROP = 0.5  # share of the area that a crop keeps
_JITTER = 0.4  # of brightness, contrast and saturation, relative

Pixels = NDArray[np.uint8]


def read_image(file: Path, case: str) -> Image.Image:
    """Decode an image whole, as RGB.

    The size that the header declares is checked before anything is decoded. Of an animation the
    first frame is taken.

    Args:
        file: JPEG, PNG, WebP, GIF or BMP, whatever its name ends in.
        case: Identifier of the sample, for the error.

    Raises:
        DataError: If the file is missing, truncated, larger than :data:`MAX_PIXELS`, or no image.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                _refuse_size(file, case, f"{width} x {height}")
            return image.convert("RGB")
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        _refuse_size(file, case, str(error))
    except FileNotFoundError as error:
        what = "Expected an image, but there is no such file."
        raise DataError(case, file, what, "Restore the file, or leave out bad samples.") from error
    except Exception as error:  # decoders raise whatever they stumble upon
        what = f"Expected an image, but it cannot be decoded ({error})."
        raise DataError(case, file, what, "Restore the file, or leave out bad samples.") from error


def _refuse_size(file: Path, case: str, found: str) -> NoReturn:
    what = f"Expected an image of at most {MAX_PIXELS} pixels, but its header declares {found}."
    raise DataError(case, file, what, "Scale it down, or leave out bad samples.")


def image_views(
    image: Image.Image, case: str, *, size: int, resample: int, views: int, seed: int
) -> Pixels:
    """The image at the size of a network, and random variations of it.

    A variation is a crop that keeps the proportions, mirrored or not, with other brightness,
    contrast and saturation. It depends on seed, sample and number of the view alone.

    Args:
        image: RGB.
        case: Identifier of the sample.
        size: Pixels of each side of the result.
        resample: Filter, as numbered by Pillow.
        views: Number of views; the first is the image itself.
        seed: Of the variations, not negative.

    Returns:
        Shape ``(views, size, size, 3)``, uint8.
    """
    filtering = Image.Resampling(resample)
    shown = [image.resize((size, size), filtering)]
    # A generator per view: the result depends on no other sample and on no order of reading.
    key = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8])
    draws = (np.random.default_rng([seed, key, view]) for view in range(1, views))
    shown.extend(_variation(image, size, filtering, rng) for rng in draws)
    return np.stack([np.asarray(one) for one in shown])


def _variation(
    image: Image.Image, size: int, filtering: Image.Resampling, rng: np.random.Generator
) -> Image.Image:
    extent = np.array(image.size) * np.sqrt(rng.uniform(_LEAST_CROP, 1))
    corner = rng.uniform(0, image.size - extent)
    end = np.minimum(corner + extent, image.size)  # rounding may put it just outside
    varied = image.resize((size, size), filtering, box=(*corner, *end))
    if rng.random() < 0.5:
        varied = ImageOps.mirror(varied)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        varied = enhance(varied).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    return varied
