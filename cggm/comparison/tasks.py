"""The tasks that can be compared on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A training script and what it reports.

    Args:
        script: File name in ``pipelines``.
        modalities: What it trains on.
        metrics: Those that tables show, the most important one first.
        modules: What the script imports.
    """

    script: str
    modalities: tuple[str, ...]
    metrics: tuple[str, ...]
    modules: tuple[str, ...] = ("cggm_cls.experiments",)


TASKS = {
    "brats": Task(
        "brats_train.py",
        ("flair", "t1ce", "t1", "t2"),
        ("dice_mean", "dice_WT", "dice_TC", "dice_ET"),
        ("cggm_seg.training", "cggm_seg.balancing", "cggm_seg.cache", "cggm_seg.summary"),
    ),
    "mosi": Task(
        "mosi_train.py",
        ("text", "audio", "vision"),
        ("mae", "corr", "acc2_non0", "f1w_non0", "acc7"),
    ),
    "iemocap": Task("iemocap_train.py", ("text", "audio", "vision"), ("acc", "f1_macro", "uar")),
    "food101": Task("food101_train.py", ("text", "image"), ("acc", "f1_macro")),
    "mfeat": Task("mfeat_train.py", ("pix", "fou", "mor"), ("acc", "f1_macro")),
}
