import numpy as np
import pytest

from cggm_seg.data.augmentation import augment


@pytest.fixture
def slice_():
    rng = np.random.default_rng(0)
    image = np.zeros((4, 48, 48), np.float32)
    image[:, 8:40, 10:36] = rng.standard_normal((4, 32, 26), np.float32) + 3
    label = np.zeros((48, 48), np.uint8)
    label[12:20, 14:24] = 3
    label[20:26, 14:24] = 1
    return image, label


def test_result_depends_on_the_generator_alone(slice_):
    for seed in range(5):
        first = augment(*slice_, np.random.default_rng(seed))
        augment(*slice_, np.random.default_rng(99))
        second = augment(*slice_, np.random.default_rng(seed))
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])


def test_arguments_are_left_alone(slice_):
    copies = [array.copy() for array in slice_]
    for seed in range(10):
        augment(*slice_, np.random.default_rng(seed))
    for array, copy in zip(slice_, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_background_labels_and_types_are_kept(slice_):
    for seed in range(20):
        image, label = augment(*slice_, np.random.default_rng(seed))
        assert (image.shape, image.dtype) == ((4, 48, 48), np.float32)
        assert (label.shape, label.dtype) == ((48, 48), np.uint8)
        assert image.flags.c_contiguous
        assert label.flags.c_contiguous
        assert set(np.unique(label)) <= {0, 1, 3}
        assert 0.2 < (image == 0).mean() < 0.9


def test_image_and_label_move_together():
    label = np.zeros((48, 48), np.uint8)
    label[10:22, 14:30] = 1
    image = np.repeat(label[None].astype(np.float32) * 5, 2, axis=0)
    for seed in range(30):
        moved, moved_label = augment(image, label, np.random.default_rng(seed))
        inside = moved[0] > moved[0].max() / 2
        overlap = 2 * (inside & (moved_label == 1)).sum() / (inside.sum() + moved_label.sum())
        assert overlap > 0.9


def test_operations_act_independently_of_each_other():
    """Flips must occur without turns and turns without flips."""
    label = np.zeros((8, 8), np.uint8)
    label[0, 1] = label[1, 0] = label[0, 0] = 1
    label[0, 2] = 2
    image = label[None].astype(np.float32)
    seen = {augment(image, label, np.random.default_rng(seed))[1].tobytes() for seed in range(400)}
    rigid = {
        turned.tobytes()
        for turns in range(4)
        for turned in (np.rot90(label, turns), np.rot90(label[:, ::-1], turns))
    }
    assert len(rigid) == 8
    assert rigid <= seen


@pytest.mark.parametrize("modalities", [1, 3, 5])
def test_any_number_of_modalities(slice_, modalities):
    image = np.resize(slice_[0], (modalities, 48, 48))
    moved, _ = augment(image, slice_[1], np.random.default_rng(1))
    assert moved.shape == image.shape


def test_intensities_change_by_modality(slice_):
    ratios = []
    for seed in range(40):
        image, _ = augment(*slice_, np.random.default_rng(seed))
        ratios.append([modality[modality != 0].mean() / 3 for modality in image])
    spread = np.std(ratios, axis=0)
    assert (spread > 0.02).all()
    assert (spread < 0.15).all()
    assert np.abs(np.corrcoef(np.transpose(ratios))[0, 1]) < 0.9
