import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cggm_seg.pictures import COLORS, save_overlay

MODALITIES = ("flair", "t1ce", "t1", "t2")
SHAPE = (40, 48, 12)


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    """A gray box for a brain; edema in the patient's left and anterior quarter of slice 7."""
    images = np.zeros((4, *SHAPE), np.int16)
    images[:, 4:36, 4:44] = 300
    images[:, 10:14, 10:14] += 100
    labels = np.zeros(SHAPE, np.uint8)
    labels[24:32, 8:16, 7] = 2
    labels[27:29, 11:13, 5] = 3
    return images, labels


def picture(path, images, prediction, reference, **options) -> np.ndarray:
    save_overlay(
        path, images, prediction, reference, case_id="A_1", modalities=MODALITIES, **options
    )
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return matplotlib.image.imread(path)[..., :3]


def colored(pixels: np.ndarray, color: str) -> np.ndarray:
    """Positions, (N, 2), of the contour's color, the legend at the bottom left out."""
    close = np.abs(pixels - to_rgb(color)).max(-1) < 0.02
    return np.argwhere(close[: -pixels.shape[0] // 12])


def test_lesion_of_the_left_anterior_quarter_is_drawn_top_right(case, tmp_path):
    images, labels = case
    pixels = picture(tmp_path / "a.png", images, labels, None)
    height, width, _ = pixels.shape
    drawn = colored(pixels[: height // 2], COLORS["ED"])  # FLAIR, where the right panel is drawn on
    assert len(drawn) > 20
    assert drawn[:, 1].min() > 0.75 * width
    assert drawn[:, 0].max() < 0.55 * height / 2
    assert not len(colored(pixels, COLORS["ET"]))  # lies in slice 5, which shows less lesion


def test_reference_adds_a_column_and_chooses_the_slice(case, tmp_path):
    images, labels = case
    alone = picture(tmp_path / "a.png", images, labels, None)
    reference = np.zeros_like(labels)
    reference[20:30, 20:30, 5] = 3
    both = picture(tmp_path / "b.png", images, labels, reference)
    assert both.shape[1] == pytest.approx(1.5 * alone.shape[1], abs=2)
    assert len(colored(both, COLORS["ET"]))
    assert not len(colored(both, COLORS["ED"]))


def test_note_changes_the_title_alone(case, tmp_path):
    images, labels = case
    plain = picture(tmp_path / "a.png", images, labels, labels)
    noted = picture(tmp_path / "b.png", images, labels, labels, note="simulated data")
    rows = np.flatnonzero((plain != noted).any((1, 2)))
    assert rows.size
    assert rows.max() < 0.1 * plain.shape[0]


def test_case_without_lesion_shows_the_largest_brain(case, tmp_path):
    images, labels = case
    images[..., :6] = 0
    images[:, 4:8, :, 8:] = 0
    empty = picture(tmp_path / "a.png", images, np.zeros_like(labels), None)
    assert empty.max() > 0.9
    assert not len(colored(empty, COLORS["ED"]))


def test_one_modality_gives_one_row(case, tmp_path):
    images, labels = case
    path = tmp_path / "a.png"
    save_overlay(path, images[:1], labels, labels, case_id="A_1", modalities=("t2",))
    four = picture(tmp_path / "b.png", images, labels, labels)
    assert matplotlib.image.imread(path).shape[0] < 0.7 * four.shape[0]


def test_shapes_that_do_not_fit_are_refused_and_leave_nothing(case, tmp_path):
    images, labels = case
    with pytest.raises(ValueError, match="Expected `images`"):
        picture(tmp_path / "a.png", images[:3], labels, None)
    with pytest.raises(ValueError, match="Expected `reference`"):
        picture(tmp_path / "a.png", images, labels, labels[1:])
    assert not list(tmp_path.iterdir())
