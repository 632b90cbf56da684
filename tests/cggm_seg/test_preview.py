import numpy as np
import pytest
from PIL import Image, ImageColor

from cggm_seg.pictures import REGION_COLORS, save_preview

SHAPE = (40, 48, 12)
VOLUMES = {"WT": 12.34, "TC": 5.0, "ET": 0.0}


@pytest.fixture
def case():
    """A gray box for a brain; edema in the patient's left and anterior quarter of slice 7."""
    images = np.zeros((4, *SHAPE), np.int16)
    images[:, 4:36, 4:44] = 300
    images[:, 10:14, 10:14] += 100
    labels = np.zeros(SHAPE, np.uint8)
    labels[24:32, 8:16, 7] = 2
    labels[27:29, 11:13, 5] = 3
    return images, labels


def picture(path, images, labels, modalities=("flair", "t1ce", "t1", "t2"), **options):
    options = {"case_id": "A_1", "volumes": VOLUMES, **options}
    save_preview(path, images, labels, modalities=modalities, **options)
    image = Image.open(path)
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def colored(pixels, region):
    """Positions, (N, 2), of the outline of a region, above the caption."""
    color = np.array(ImageColor.getrgb(REGION_COLORS[region]))
    return np.argwhere(np.abs(pixels[:400] - color).max(-1) < 8)


def test_lesion_of_the_left_anterior_quarter_is_outlined_top_right(case, tmp_path):
    pixels = picture(tmp_path / "a.png", *case)
    assert pixels.shape[1] == 800  # FLAIR and T1ce
    drawn = colored(pixels[:, :400], "WT")
    assert len(drawn) > 100
    assert drawn[:, 1].min() > 200
    assert drawn[:, 0].max() < 200
    assert not len(colored(pixels, "ET"))  # lies in slice 5, which shows less lesion
    # A square of 8 voxels, in a window of 44 x 52 that is 400 pixels high; the inside is left free.
    extent = drawn.max(0) - drawn.min(0)
    assert extent == pytest.approx([8 * 400 / 52] * 2, abs=6)
    middle = drawn.min(0) + extent // 2
    assert np.abs(drawn - middle).max(1).min() > 15


def test_core_is_outlined_around_enhancing_tumor(case, tmp_path):
    images, labels = case
    labels[26:30, 10:14, 7] = 3
    pixels = picture(tmp_path / "a.png", images, labels)
    core, enhancing = colored(pixels[:, :400], "TC"), colored(pixels[:, :400], "ET")
    assert (core.min(0) < enhancing.min(0)).all()
    assert (core.max(0) > enhancing.max(0)).all()


def test_a_single_voxel_is_outlined(case, tmp_path):
    images, _ = case
    labels = np.zeros(SHAPE, np.uint8)
    labels[20, 20, 7] = 2
    assert len(colored(picture(tmp_path / "a.png", images, labels), "WT"))


def test_case_without_lesion_shows_the_largest_brain(case, tmp_path):
    images, labels = case
    images[..., :6] = 0
    images[:, 4:8, :, 8:] = 0
    pixels = picture(tmp_path / "a.png", images, np.zeros_like(labels))
    assert pixels[:400].max() > 200
    assert not len(colored(pixels, "WT"))


def test_caption_tells_case_volumes_and_absent_modalities(case, tmp_path):
    plain = picture(tmp_path / "a.png", *case)
    other = picture(tmp_path / "b.png", *case, case_id="A_2", volumes={**VOLUMES, "ET": 9.9})
    changed = np.argwhere((plain != other).any(-1))
    assert changed[:, 0].min() > 400
    absent = picture(tmp_path / "c.png", *case, absent=("t1ce", "t2"))
    assert absent.shape[0] > plain.shape[0]
    assert (absent[: len(plain) - 10] == plain[:-10]).all()
    assert absent[len(plain) - 10 :].max() > 200
    long = picture(tmp_path / "d.png", *case, case_id="A" * 500)
    assert (long[400:, -90:] == plain[400:, -90:]).all()  # the slice number is not written over


def test_without_flair_and_t1ce_the_first_modality_is_shown(case, tmp_path):
    images, labels = case
    pixels = picture(tmp_path / "a.png", images[:1], labels, ("t2",), absent=("flair",))
    assert pixels.shape[1] == 400
    assert len(colored(pixels, "WT"))
