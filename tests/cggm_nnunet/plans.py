"""Plans of nnU-Net written by hand, small enough for a processor, and trainers made of them."""

import os
from pathlib import Path

import torch

PARTS = ("raw", "preprocessed", "results")
NAMES = ("FLAIR", "T1c", "T2")
PATCH = {2: (32, 48), 3: (16, 32, 24)}
ARCHITECTURES = "dynamic_network_architectures.architectures.unet."


def architecture(*, residual: bool = False, axes: int = 3, features=(6, 12, 24, 24)) -> dict:
    """What a plan says of the network; the second pooling leaves the first axis alone."""
    strides = [[1] * axes, [2] * axes, [1, *[2] * (axes - 1)], [2] * axes]
    blocks = {"n_blocks_per_stage": [1, 2, 2, 2]} if residual else {"n_conv_per_stage": [2] * 4}
    return {
        "network_class_name": ARCHITECTURES
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": 4,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * 4,
            "strides": strides,
            **blocks,
            "n_conv_per_stage_decoder": [1] * 3 if residual else [2] * 3,
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plan(*, residual: bool = False, axes: int = 3) -> dict:
    """Content of ``nnUNetPlans.json``, as far as a trainer reads it."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "cases",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCH[axes]),
        "median_image_size_in_voxels": list(PATCH[axes]),
        "spacing": [1.0] * axes,
        "normalization_schemes": ["ZScoreNormalization"] * len(NAMES),
        "use_mask_for_norm": [False] * len(NAMES),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "architecture": architecture(residual=residual, axes=axes),
        "batch_dice": True,
    }
    return {
        "dataset_name": "Dataset901_Small",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"2d" if axes == 2 else "3d_fullres": configuration},
        "continue_training": False,
    }


def dataset(*, regions: bool = False) -> dict:
    """Content of ``dataset.json``."""
    described = {
        "channel_names": {str(i): name for i, name in enumerate(NAMES)},
        "labels": {"background": 0, "edema": [1, 2] if regions else 1, "lesion": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    return described | ({"regions_class_order": [1, 2]} if regions else {})


def make_trainer(kind, folder: Path, *, regions=False, settings="", initialize=True, **planned):
    """A trainer whose folders lie in `folder`, with the weights of seed 0."""
    os.environ.update({f"nnUNet_{part}": str(folder / part) for part in PARTS})
    cases = folder / "preprocessed" / "Dataset901_Small" / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    (cases / "case.b2nd").touch()  # by whose ending nnU-Net tells how cases are stored
    (cases.parent / "cggm.yaml").write_text(settings or "{}")
    described, plans = dataset(regions=regions), plan(**planned)
    configuration = next(iter(plans["configurations"]))
    trainer = kind(plans, configuration, 0, described, torch.device("cpu"))
    if initialize:
        torch.manual_seed(0)
        trainer.initialize()
    return trainer


def batch(number: int, *, regions=False, axes: int = 3, absent=()) -> dict:
    """A batch as nnU-Net's loader gives it; `absent` are pairs of a sample and a channel."""
    generator = torch.Generator().manual_seed(number)
    shape = PATCH[axes]
    labels = torch.zeros(2, 1, *shape, dtype=torch.int16)
    labels[:, :, 4:12, 6:20] = 1
    labels[:, :, 6:10, 8 + number % 4 : 16] = 2
    images = torch.randn(2, len(NAMES), *shape, generator=generator)
    for channel in range(len(NAMES)):
        images[:, channel] += (channel + 1.0) * labels[:, 0]
    for sample, channel in absent:
        images[sample, channel] = 0.0
    if regions:
        labels = torch.cat([labels > 0, labels > 1], 1)
    half = labels[(...,) + (slice(None, None, 2),) * axes]
    coarse = half[(...,) + (slice(None, None, 2),) * (axes - 1)]
    return {"data": images, "target": [labels, half, coarse], "keys": ["a", "b"]}
