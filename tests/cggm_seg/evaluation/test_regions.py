import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from cggm_seg.evaluation.regions import REGIONS, region_dice_counts, region_mask
from tests.quantifiers import none

SYNCHRONIZING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount")


class RefuseHostSync(TorchDispatchMode):
    """Raises on operators that bring a value, or a size that depends on values, to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in SYNCHRONIZING:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def brute_force(prediction: np.ndarray, target: np.ndarray) -> tuple[list[float], list[float]]:
    classes = prediction.argmax(1)
    numerators, denominators = [], []
    for members in ({3}, {1, 3}, {1, 2, 3}):
        pairs = [
            (p in members, t in members) for p, t in zip(classes.flat, target.flat, strict=True)
        ]
        numerators.append(2.0 * sum(p and t for p, t in pairs))
        denominators.append(float(sum(p + t for p, t in pairs)))
    return numerators, denominators


def test_region_mask_holds_the_nested_regions():
    labels = np.array([0, 1, 2, 3])
    assert region_mask(labels, "ET").tolist() == [False, False, False, True]
    assert region_mask(labels, "TC").tolist() == [False, True, False, True]
    assert region_mask(labels, "WT").tolist() == [False, True, True, True]
    assert list(REGIONS) == ["ET", "TC", "WT"]


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 1, 1), (2, 5, 4), (3, 4, 2, 5)]),
    dtype=st.sampled_from([torch.int64, torch.uint8]),
    ties=st.booleans(),
)
def test_region_dice_counts_equal_brute_force(seed, shape, dtype, ties):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((shape[0], 4, *shape[1:])).astype(np.float32)
    if ties:
        logits = logits.round()
    target = rng.integers(0, 4, shape)
    numerators, denominators = region_dice_counts(
        torch.from_numpy(logits), torch.from_numpy(target).to(dtype)
    )
    assert numerators.dtype == denominators.dtype == torch.float32
    assert (numerators.tolist(), denominators.tolist()) == brute_force(logits, target)


def test_region_dice_counts_add_up_over_micro_batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, 8, 8, generator=generator)
    target = torch.randint(0, 4, (6, 8, 8), generator=generator)
    whole = torch.stack(region_dice_counts(logits, target))
    halves = [
        torch.stack(region_dice_counts(logits[part], target[part]))
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert torch.equal(whole, halves[0] + halves[1])


def test_region_dice_counts_are_zero_over_zero_without_lesion():
    logits = torch.zeros(1, 4, 3, 3)
    numerators, denominators = region_dice_counts(logits, torch.zeros(1, 3, 3, dtype=torch.int64))
    assert numerators.tolist() == denominators.tolist() == [0, 0, 0]


def test_region_dice_counts_do_not_synchronize_and_keep_no_graph():
    logits = torch.randn(2, 4, 8, 8, requires_grad=True)
    target = torch.randint(0, 4, (2, 8, 8))
    with RefuseHostSync(), pytest.raises(AssertionError, match="waits for the device"):
        target.max().item()
    with RefuseHostSync():
        counts = region_dice_counts(logits, target)
    assert none(count.requires_grad for count in counts)


@pytest.mark.parametrize(
    ("logits", "target"), [((2, 3, 8, 8), (2, 8, 8)), ((2, 4, 8, 8), (2, 8, 7))]
)
def test_region_dice_counts_refuse_shapes_that_do_not_fit(logits, target):
    with pytest.raises(ValueError, match="Expected logits"):
        region_dice_counts(torch.zeros(logits), torch.zeros(target, dtype=torch.int64))
