import numpy as np
import pytest

from cggm_seg.verification.alignment import best_shift, lesion_voxels, outside_share
from tests.cggm_seg.simulated import simulated_case


def shift_of(images, classes):
    classes = np.asfortranarray(classes)
    return best_shift(images, classes, lesion_voxels(classes))


@pytest.mark.parametrize("index", range(20))
def test_shift_by_one_voxel_along_any_axis_is_found_and_none_where_there_is_none(index):
    images, classes = simulated_case(index)
    assert shift_of(images, classes) == (0, 0, 0)
    for axis, step in np.ndindex(3, 2):
        moved = 2 * step - 1
        back = [0, 0, 0]
        back[axis] = -moved
        assert shift_of(images, np.roll(classes, moved, axis)) == tuple(back)


def test_shift_of_two_and_along_two_axes():
    images, classes = simulated_case(0)
    assert shift_of(images, np.roll(classes, 2, 2)) == (0, 0, -2)
    assert shift_of(images, np.roll(classes, (1, -1), (0, 2))) == (-1, 0, 1)


@pytest.mark.parametrize("moved", [(4, 0, 0), (0, -7, 0), (0, 0, 5), (-9, 3, 2), (0, 15, 0)])
@pytest.mark.parametrize("index", range(5))
def test_shift_beyond_the_neighbors_is_told_as_it_is(index, moved):
    images, classes = simulated_case(index)
    shift = shift_of(images, np.roll(classes, moved, (0, 1, 2)))
    assert shift == tuple(-step for step in moved)


@pytest.mark.parametrize("index", range(8))
def test_shift_beyond_reach_is_told_as_such(index):
    images, classes = simulated_case(index)
    assert shift_of(images, np.roll(classes, 25, 0)) is None


def test_lesion_at_the_border_of_the_volume():
    images, classes = simulated_case(0)
    low = [np.flatnonzero(classes.any(axis=axes))[0] for axes in ((1, 2), (0, 2), (0, 1))]
    cut = tuple(slice(start, None) for start in low)
    assert shift_of([image[cut] for image in images], classes[cut]) == (0, 0, 0)
    moved = np.roll(classes, 1, 0)[cut]
    assert shift_of([image[cut] for image in images], moved) == (-1, 0, 0)


def test_few_voxels_and_images_without_contrast_prove_nothing():
    images, classes = simulated_case(0)
    flat = [(image != 0).astype(np.int16) for image in images]
    assert shift_of(flat, np.roll(classes, 1, 0)) == (0, 0, 0)
    few = np.zeros_like(classes)
    few[tuple(axis[:50] for axis in np.nonzero(classes))] = 2
    assert shift_of(images, few) == (0, 0, 0)


def test_share_of_the_lesion_outside_the_brain():
    images, classes = simulated_case(0)
    assert outside_share(images, lesion_voxels(classes)) == 0
    half = np.zeros_like(classes)
    inside, outside = np.argwhere(images[0] != 0)[:30], np.argwhere(images[0] == 0)[:10]
    half[tuple(np.concatenate([inside, outside]).T)] = 1
    assert outside_share(images, lesion_voxels(half)) == pytest.approx(0.25)
