"""Moving the pixels of training slices: albumentations, archived, against what could follow.

    python -m benchmarks.data.spatial [--slices 200]

A flip, a quarter turn and an affine map, each with our probabilities, of a slice of four modalities
and its labels. All contenders take turns; times are of processor, on one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from monai.transforms import Compose, RandAffined, RandFlipd, RandRotate90d
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from cggm_seg.data.augmentation import spatial_transforms

SIZE = 160
ROUNDS = 5


def ours() -> Callable[[np.ndarray, np.ndarray], object]:
    """Albumentations, as trainings use it."""
    transforms = spatial_transforms()

    def move(image: np.ndarray, label: np.ndarray) -> object:
        rows = {"image": np.ascontiguousarray(image.transpose(1, 2, 0)), "mask": label}
        for transform in transforms:
            rows = transform(**rows)
        return np.ascontiguousarray(rows["image"].transpose(2, 0, 1)), rows["mask"]

    return move


def torchvision() -> Callable[[np.ndarray, np.ndarray], object]:
    """The v2 transforms, which know images and masks."""
    affine = v2.RandomAffine(15, (0.05, 0.05), (0.9, 1.1), interpolation=InterpolationMode.BILINEAR)
    quarter = [v2.RandomRotation((k, k)) for k in (90, 180, 270)]
    chain = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.RandomChoice(quarter)], 0.5),
            v2.RandomApply([affine], 0.3),
        ]
    )
    return lambda image, label: chain(
        tv_tensors.Image(torch.from_numpy(image)), tv_tensors.Mask(torch.from_numpy(label))
    )


def monai() -> Callable[[np.ndarray, np.ndarray], object]:
    """The dictionary transforms."""
    keys = ["image", "label"]
    affine = RandAffined(
        keys,
        prob=0.3,
        rotate_range=np.pi / 12,
        translate_range=(8, 8),
        scale_range=0.1,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )
    chain = Compose([RandFlipd(keys, 0.5, 1), RandRotate90d(keys, 0.5), affine])
    return lambda image, label: chain({"image": image, "label": label[None]})


def main() -> None:
    """Measure and print milliseconds of a slice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=200, help="of a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((4, SIZE, SIZE), np.float32)
    label = rng.integers(0, 4, (SIZE, SIZE)).astype(np.uint8)
    contenders = {"albumentations": ours(), "torchvision v2": torchvision(), "MONAI": monai()}
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS + 1):
        for name, move in contenders.items():
            start = time.process_time()
            for _ in range(options.slices):
                move(image, label)
            spent[name].append((time.process_time() - start) / options.slices)
    own = spent["albumentations"][1:]
    for name, seconds in spent.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[1:], own, strict=True))
        print(f"{name:15} {statistics.median(seconds[1:]) * 1e3:6.2f} ms a slice, x{ratio:.1f}")


if __name__ == "__main__":
    main()
