import json
import shutil
import subprocess
import sys
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cggm.errors import UserError
from cggm_seg.data.cases import find_cases, has_simulated_cases
from cggm_seg.data.volumes import read_case, write_labels
from cggm_seg.simulation.cohort import simulate_cohort
from cggm_seg.simulation.phantom import CONTRASTS
from tests.cggm_seg.nifti import write_case
from tests.quantifiers import every

HOLDER = """
import sys, time
from pathlib import Path
from cggm.runs.storage.locks import hold
hold(Path(sys.argv[1]), "a simulation")
print("held", flush=True)
time.sleep(60)
"""
SMALL = (48, 48, 31)
BRATS_AFFINE = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]


def simulate(folder: Path, cases: int, **options) -> list[str]:
    return simulate_cohort(folder, cases=cases, progress=False, **({"shape": SMALL} | options))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    simulate(folder, 20)
    return folder


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> dict[str, nib.Nifti1Image]:
    folder = tmp_path_factory.mktemp("full")
    (name,) = simulate(folder, 1, shape=(240, 240, 155), seed=3)
    return {part: nib.load(folder / name / f"{name}_{part}.nii.gz") for part in (*CONTRASTS, "seg")}


def test_full_size_files_look_like_brats(full_size):
    for part, image in full_size.items():
        assert image.shape == (240, 240, 155)
        assert image.get_data_dtype() == (np.uint8 if part == "seg" else np.int16)
        assert image.affine.tolist() == BRATS_AFFINE
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 0)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    brain = np.asarray(full_size["t1"].dataobj) > 0
    assert 0.13 < brain.mean() < 0.2
    assert set(np.unique(full_size["seg"].dataobj)) == {0, 1, 2, 4}
    for part in CONTRASTS:
        image = np.asarray(full_size[part].dataobj)
        assert np.array_equal(image > 0, brain)
        assert image.min() == 0


def test_full_size_lesion_has_thick_shells_and_no_satellite(full_size):
    labels, images = crop_to_lesion(full_size)
    outside = images["t1"] == 0
    lesion, core = labels > 0, np.isin(labels, (1, 4))
    assert ndimage.distance_transform_edt(lesion | outside)[core].min() >= 5
    assert ndimage.distance_transform_edt(core | outside)[labels == 1].min() >= 4
    parts, count = ndimage.label(lesion)
    assert np.bincount(parts.ravel())[1:].min() > 5000
    assert count <= 2


def test_full_size_contrasts_follow_the_table(full_size):
    labels, images = crop_to_lesion(full_size)
    rim, edema = (ndimage.binary_erosion(labels == value) for value in (4, 2))
    for modality, means in CONTRASTS.items():
        ratio = np.median(images[modality][rim]) / np.median(images[modality][edema])
        assert ratio == pytest.approx(means["et"] / means["ed"], rel=0.12)


def crop_to_lesion(files: dict[str, nib.Nifti1Image]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    volumes = {part: np.asarray(file.dataobj) for part, file in files.items()}
    (box,) = ndimage.find_objects((volumes["seg"] > 0).astype(np.uint8))
    box = tuple(slice(max(side.start - 2, 0), side.stop + 2) for side in box)
    labels = volumes.pop("seg")[box]
    return labels, {part: volume[box] for part, volume in volumes.items()}


@pytest.fixture(scope="module")
def small_lesions(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("lesions")
    names = simulate_cohort(folder, lesions="small", progress=False)
    return {
        name: {
            part: np.asarray(nib.load(folder / name / f"{name}_{part}.nii.gz").dataobj)
            for part in (*CONTRASTS, "seg")
        }
        for name in names
    }


def test_small_lesions_have_cores_of_five_to_ten_voxels_in_radius(small_lesions):
    assert len(small_lesions) == 8
    radii, shares = [], []
    for volumes in small_lesions.values():
        assert volumes["seg"].shape == (120, 120, 78)
        core = np.isin(volumes["seg"], (1, 4))
        assert (volumes["seg"] == 4).any()
        parts, _ = ndimage.label(core)
        sizes = np.bincount(parts.ravel())[1:]
        radii.append((3 * sizes.max() / (4 * np.pi)) ** (1 / 3))
        shares.append(core.sum() / (volumes["seg"] > 0).sum())
    assert 4 < min(radii) < 6
    assert 7 < max(radii) < 11
    assert np.mean(shares) < 0.3


def test_rim_of_small_lesions_is_a_third_brighter_than_white_matter(small_lesions):
    ratios = []
    for volumes in small_lesions.values():
        image, lesion = volumes["t1ce"], volumes["seg"] > 0
        # The brighter half of healthy tissue in T1 is white matter for the most part.
        healthy = (volumes["t1"] > 0) & ~ndimage.binary_dilation(lesion, iterations=3)
        white = healthy & (volumes["t1"] > np.quantile(volumes["t1"][healthy], 0.7))
        core = np.isin(volumes["seg"], (1, 4))
        rim = (volumes["seg"] == 4) & ndimage.binary_erosion(core)
        ratios.append(np.median(image[rim]) / np.median(image[white]))
    assert np.mean(ratios) == pytest.approx(4 / 3, rel=0.1)


def test_cohort_is_read_without_complaint(cohort):
    cases, errors = find_cases(cohort, labelled=True)
    assert [case.id for case in cases] == [f"DEMO_{index:05d}" for index in range(20)]
    assert errors == []
    volumes = read_case(cases[1])
    assert volumes.images.shape == (4, *SMALL)
    assert set(np.unique(volumes.label)) <= {0, 1, 2, 3}


def test_small_cohort_keeps_the_field_of_view(cohort):
    name = "DEMO_00000"
    image = nib.load(cohort / name / f"{name}_t1.nii.gz")
    np.testing.assert_allclose(image.header.get_zooms(), (5, 5, 5))
    corners = nib.affines.apply_affine(image.affine, [[-0.5] * 3, np.array(SMALL) - 0.5])
    np.testing.assert_allclose(corners, [[0.5, 239.5, -0.5], [-239.5, -0.5, 154.5]])


def test_share_of_cases_without_enhancing_tumor(cohort):
    cases, _ = find_cases(cohort, labelled=True)
    without = [index for index, case in enumerate(cases) if not (read_case(case).label == 3).any()]
    assert len(without) == 3
    assert every(later - earlier in (6, 7) for earlier, later in pairwise(without))


def test_cases_differ(cohort):
    first, second = (
        np.asarray(nib.load(cohort / name / f"{name}_t1.nii.gz").dataobj) > 0
        for name in ("DEMO_00000", "DEMO_00001")
    )
    assert (first != second).mean() > 0.005


def test_files_depend_on_seed_and_number_alone(cohort, tmp_path):
    simulate(tmp_path / "one", 4, workers=1)
    simulate(tmp_path / "three", 4, workers=3)
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "three")
    assert one.items() <= digests(cohort).items()
    simulate(tmp_path / "other", 1, seed=1)
    name = "DEMO_00000/DEMO_00000_t1.nii.gz"
    assert one[name] != digests(tmp_path / "other")[name]


def test_cases_to_hold_out_have_names_of_their_own_in_a_folder_of_their_own(cohort, tmp_path):
    folder = tmp_path / "held-out"
    assert simulate(folder, 1, prefix="HELD") == ["HELD_00000"]
    name = "DEMO_00000/DEMO_00000_t1.nii.gz"
    assert digests(folder)[name.replace("DEMO", "HELD")] == digests(cohort)[name]
    with pytest.raises(UserError, match="another prefix"):
        simulate(folder, 1)


def test_interrupted_cohort_is_completed_and_whole_cases_are_kept(tmp_path):
    folder = tmp_path / "demo"
    simulate(folder, 2)
    before = digests(folder)
    kept = folder / "DEMO_00000" / "DEMO_00000_t1.nii.gz"
    stamp = kept.stat().st_mtime_ns
    (folder / "DEMO_00001" / "DEMO_00001_seg.nii.gz").unlink()
    leftover = folder / ".DEMO_00001.partial"
    leftover.mkdir()
    (leftover / "half.nii.gz").write_bytes(b"half")
    assert simulate(folder, 3) == ["DEMO_00000", "DEMO_00001", "DEMO_00002"]
    assert kept.stat().st_mtime_ns == stamp
    assert before.items() <= digests(folder).items()
    assert not leftover.exists()


def test_two_simulations_of_one_cohort_are_one(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "cohort")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "cohort")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        try:
            assert len(simulate(tmp_path / "cohort", 20)) == 20  # all of them are there
            with pytest.raises(UserError, match=r"a simulation, process .* still writes there"):
                simulate(tmp_path / "cohort", 21)
        finally:
            holder.kill()
    simulate(tmp_path / "cohort", 21)


def test_cohort_says_that_it_is_simulated(cohort):
    text = (cohort / "README.txt").read_text()
    assert "SIMULATED" in text
    assert "Louis Collins" in text
    settings = json.loads((cohort / "cohort.json").read_text())
    assert settings["seed"] == 0
    assert settings["shape"] == list(SMALL)
    assert settings["contrasts"] == CONTRASTS


def test_simulated_cases_say_so_wherever_they_are_copied(cohort, tmp_path):
    write_case(tmp_path / "real", "a")
    assert not has_simulated_cases(tmp_path / "real")
    assert not has_simulated_cases(tmp_path / "absent")
    assert has_simulated_cases(cohort)
    assert has_simulated_cases(cohort / "DEMO_00001")
    case = find_cases(cohort, labelled=True)[0][1]
    shutil.copytree(cohort / case.id, tmp_path / "copied" / "b" / case.id)
    assert has_simulated_cases(tmp_path / "copied")
    (tmp_path / "maps").mkdir()
    volumes = read_case(case)
    write_labels(tmp_path / "maps" / "c.nii.gz", volumes.label, volumes.grid, case.labels)
    assert has_simulated_cases(tmp_path / "maps")


@pytest.mark.parametrize("changed", [{"seed": 1}, {"shape": (24, 24, 16)}, {"lesions": "small"}])
def test_cohort_of_other_settings_is_refused(cohort, changed):
    before = digests(cohort)
    with pytest.raises(UserError, match=f"found another .*{next(iter(changed))}"):
        simulate(cohort, 1, **changed)
    assert digests(cohort) == before


def test_cohort_from_before_there_were_small_lesions_is_extended(cohort):
    assert "lesions" not in json.loads((cohort / "cohort.json").read_text())
    assert len(simulate(cohort, 20, lesions="large")) == 20


def test_voxels_of_a_seed_stay_those_of_earlier_versions(tmp_path):
    (name,) = simulate(tmp_path, 1, shape=(24, 24, 16), seed=2)
    volumes = [
        np.asarray(nib.load(tmp_path / name / f"{name}_{part}.nii.gz").dataobj)
        for part in (*CONTRASTS, "seg")
    ]
    found = sha256(b"".join(v.tobytes("F") for v in volumes)).hexdigest()[:16]
    assert found == "2b16b05bbbbf2d71"


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "BraTS2021_00000").mkdir()
    with pytest.raises(UserError, match="found other files"):
        simulate(tmp_path, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["BraTS2021_00000"]


@pytest.mark.parametrize("text", ["", "[]", '{"seed": 0}'])
def test_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "cohort.json").write_text(text)
    with pytest.raises(UserError, match="found another generator"):
        simulate(tmp_path, 1)
