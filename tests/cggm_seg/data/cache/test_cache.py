import gzip
import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cggm.errors import DataError, UserError
from cggm.runs.storage.files import replacing
from cggm_seg.data.cache import FORMAT, SliceCache, build_cache, entries, pack
from cggm_seg.data.cases import Case, find_cases
from tests.cggm_seg.nifti import SUFFIXES, case_file, write_case, write_volume
from tests.quantifiers import every

SHAPE = (20, 18, 16)


@pytest.fixture
def cases(tmp_path):
    for seed, case_id in enumerate(("a", "b")):
        write_case(tmp_path / "data", case_id, shape=SHAPE, seed=seed)
    return find_cases(tmp_path / "data", labelled=True)[0]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def build(cases: list[Case], folder: Path, **options: bool) -> tuple[SliceCache, list[DataError]]:
    return build_cache(cases, folder, workers=1, progress=False, **options)


def stored(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def rewrite(file: Path, change=lambda array: array + 1) -> None:
    array = stored(file)
    write_volume(file, np.where(array, change(array), 0).astype(array.dtype))


def identity(folder: Path) -> dict[str, int]:
    return {case_id: file.stat().st_ino for case_id, [file] in entries(folder).items()}


def entry(folder: Path, case_id: str) -> Path:
    """The one file that a case is cached in."""
    [file] = entries(folder)[case_id]
    return file


def test_slices_are_the_standardized_brain(cases, folder):
    cache, errors = build(cases, folder)

    assert errors == []
    assert cache.case_ids == ("a", "b")
    images = np.stack([stored(file) for file in cases[0].images.values()]).astype(float)
    brain = np.argwhere(images.any(axis=0))
    box = tuple(slice(low, high + 1) for low, high in zip(brain.min(0), brain.max(0), strict=True))
    label = np.array([0, 1, 2, 9, 3])[stored(cases[0].label)][box]
    assert cache.depth("a") == label.shape[2]
    for z in range(cache.depth("a")):
        image, plane = cache.read("a", z)
        assert (image.dtype, plane.dtype) == (np.float32, np.uint8)
        np.testing.assert_array_equal(plane, label[..., z])
        np.testing.assert_array_equal(
            cache.class_counts("a")[z], [(label[..., z] == k).sum() for k in range(4)]
        )
        for modality, score in zip(images, image, strict=True):
            values = modality[modality != 0]
            raw = modality[box][..., z]
            expected = np.where(raw == 0, 0, (raw - values.mean()) / values.std())
            np.testing.assert_allclose(score, expected, atol=1e-5)


def test_slice_outside_the_case_is_an_error(cases, folder):
    cache, _ = build(cases, folder)
    for z in (-1, cache.depth("a")):
        with pytest.raises(IndexError, match="Expected `z` in"):
            cache.read("a", z)


def test_float_images_of_any_range_are_cached(cases, folder):
    exact, _ = build(cases[:1], folder)
    expected = exact.read("a", 8)[0]
    for file in cases[0].images.values():
        write_volume(file, stored(file).astype(np.float32) / 3e5)
    cache, _ = build(cases[:1], folder)
    np.testing.assert_allclose(cache.read("a", 8)[0], expected, atol=6e-3)


def test_second_build_touches_nothing(cases, folder):
    build(cases, folder)
    before = identity(folder)
    build(cases, folder)
    assert identity(folder) == before


def test_two_workers_give_the_files_of_one(cases, folder, tmp_path):
    build(cases, folder)
    build_cache(cases, tmp_path / "other", workers=2, progress=False)
    for file in folder.iterdir():
        assert (tmp_path / "other" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("part", ["t1", "seg"])
def test_changed_file_of_equal_size_makes_its_entry_stale(cases, folder, tmp_path, part):
    build(cases, folder)
    before = identity(folder)
    file = case_file(tmp_path / "data", "a", part)
    write_case(tmp_path / "twin", "a", shape=SHAPE, seed=7)
    replacement = stored(case_file(tmp_path / "twin", "a", part))
    write_volume(file, replacement)

    cache, _ = build(cases, folder)

    assert identity(folder)["b"] == before["b"]
    fresh, _ = build(cases, tmp_path / "fresh")
    for z in range(fresh.depth("a")):
        np.testing.assert_array_equal(cache.read("a", z)[0], fresh.read("a", z)[0])
        np.testing.assert_array_equal(cache.read("a", z)[1], fresh.read("a", z)[1])


def test_touched_file_is_compared_once_by_content(cases, folder):
    build(cases, folder)
    before = load_file(entry(folder, "a"))
    os.utime(cases[0].images["t1"])
    build(cases, folder)
    touched = identity(folder)
    after = load_file(entry(folder, "a"))
    assert every(np.array_equal(after[name], before[name]) for name in before)
    build(cases, folder)
    assert identity(folder) == touched


@pytest.mark.parametrize("content_in_name", [True, False])
@pytest.mark.parametrize("field", ["format", "labels", "modalities"])
def test_case_cached_otherwise_is_stale(cases, folder, field, content_in_name):
    cache, _ = build(cases, folder)
    expected = cache.read("a", 3)[0]
    file = entry(folder, "a")
    tensors = load_file(file)
    with safe_open(file, "np") as cached:
        header = json.loads(cached.metadata()["header"])
    header["key"][field] = "another"
    tensors["images"] += 1
    file.unlink()
    named = file if content_in_name else folder / "a.safetensors"
    save_file(tensors, named, {"header": json.dumps(header)})

    cache, _ = build(cases, folder)
    np.testing.assert_array_equal(cache.read("a", 3)[0], expected)
    assert entry(folder, "a") == file


@pytest.mark.parametrize("length", [0, 5, 300, 5000])
def test_torn_entry_is_rebuilt(cases, folder, length):
    build(cases, folder)
    file = entry(folder, "a")
    content = file.read_bytes()
    file.write_bytes(content[:length])
    build(cases, folder)
    assert file.read_bytes() == content


def test_foreign_file_is_replaced(cases, folder):
    build(cases, folder)
    content = entry(folder, "a").read_bytes()
    save_file({"images": np.zeros(3)}, entry(folder, "a"), {"format": "pt"})
    build(cases, folder)
    assert entry(folder, "a").read_bytes() == content


def test_open_cache_survives_a_rebuild(cases, folder):
    cache, _ = build(cases, folder)
    expected = cache.read("a", 3)[0]
    rewrite(cases[0].images["t1"], lambda array: array * 2 + np.arange(SHAPE[2]))
    build(cases, folder)
    np.testing.assert_array_equal(cache.read("a", 3)[0], expected)


def test_two_builds_at_once_give_one_whole_cache(cases, folder, tmp_path):
    expected, _ = build(cases, tmp_path / "alone")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = [pool.submit(build, cases, folder) for _ in range(4)]
        results = [job.result() for job in jobs]
    assert [*entries(folder)] == ["a", "b"]
    assert len([*folder.iterdir()]) == 2
    for cache, errors in results:
        assert errors == []
        np.testing.assert_array_equal(cache.read("b", 5)[0], expected.read("b", 5)[0])


def test_leftovers_of_killed_builds_are_removed(cases, folder):
    folder.mkdir()
    left = folder / ".tmp-1-0123abcd-a.safetensors"
    left.write_bytes(b"torn")
    with replacing(folder / "b.safetensors") as draft:
        draft.write_bytes(b"whole")
        build(cases, folder)
    assert not left.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_case_is_listed_and_the_others_are_cached(cases, folder, workers):
    broken = cases[1].images["t2"]
    broken.write_bytes(broken.read_bytes()[:500])
    cache, [error] = build_cache(cases, folder, workers=workers, progress=False)
    assert cache.case_ids == ("a",)
    assert (error.case, error.file) == ("b", broken)
    assert [file.name for file in folder.iterdir()] == [entry(folder, "a").name]


def test_file_that_vanished_is_listed(cases, folder):
    build(cases, folder)
    cases[0].images["flair"].unlink()
    cache, [error] = build(cases, folder)
    assert cache.case_ids == ("b",)
    assert error.file == cases[0].images["flair"]


def test_strict_build_ends_at_a_bad_case(cases, folder):
    cases[0].images["t2"].write_bytes(b"")
    with pytest.raises(DataError, match="file is empty"):
        build_cache(cases, folder, workers=2, strict=True, progress=False)


def test_no_good_case_is_an_error(cases, folder):
    for case in cases:
        case.images["t2"].write_bytes(b"")
    with pytest.raises(DataError, match=r"none among 2.*file is empty"):
        build(cases, folder)
    with pytest.raises(DataError, match="none among 0"):
        build([], folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_names_the_bytes_and_leaves_nothing(cases, folder, workers):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(UserError, match=r"room for \d{5} bytes.*Free space"):
            build_cache(cases, folder, workers=workers, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []


def test_folder_that_cannot_be_made_is_an_error(cases, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Expected a folder for the cache"):
        build(cases, tmp_path / "file" / "cache")


def test_cases_must_be_labelled_and_different(cases, folder, tmp_path):
    unlabelled, _ = find_cases(tmp_path / "data", labelled=False)
    with pytest.raises(ValueError, match="has no label map"):
        build(unlabelled, folder)
    with pytest.raises(ValueError, match="every case once"):
        build([cases[0], cases[0]], folder)


def test_absent_modality_is_zero_and_known_as_absent(cases, folder):
    expected = build(cases, folder / "whole")[0].read("a", 3)
    images = dict(cases[0].images)
    del images["t1ce"], images["t1"]
    lacking = replace(cases[0], images=images)
    cache, errors = build([lacking, cases[1]], folder)
    assert errors == []
    assert cache.present("a") == (True, False, False, True)
    assert cache.present("b") == (True, True, True, True)
    image, label = cache.read("a", 3)
    np.testing.assert_array_equal(image[[0, 3]], expected[0][[0, 3]])
    np.testing.assert_array_equal(image[1:3], 0)
    np.testing.assert_array_equal(label, expected[1])
    assert cache.read("b", 3)[0][1].any()
    some = cache.only(("t1ce", "t2"))
    assert (some.present("a"), some.present("b")) == ((False, True), (True, True))
    np.testing.assert_array_equal(some.read("a", 3)[0], [image[1], image[3]])

    before = identity(folder)
    build([lacking, cases[1]], folder)
    assert identity(folder) == before
    cache, _ = build(cases, folder)  # the file has come
    assert cache.present("a") == (True, True, True, True)
    np.testing.assert_array_equal(cache.read("a", 3)[0], expected[0])
    assert identity(folder)["b"] == before["b"]


def test_cache_travels_to_other_processes_without_its_slices(cases, folder):
    cache, _ = build(cases, folder)
    expected = cache.read("a", 3)[0]
    content = pickle.dumps(cache)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).read("a", 3)[0], expected)


def fixed_case(folder: Path) -> Case:
    """A case whose voxels, and the sums over them, are the same on every machine."""
    shape, rng = (12, 10, 8), np.random.RandomState(0)  # its stream is frozen
    brain = np.zeros(shape, bool)
    brain[2:10, 1:9, 1:7] = True
    for part in SUFFIXES["2021"]:
        high = 5 if part == "seg" else 2000
        values = rng.randint(1, high, shape)
        stored = np.where(values == 3, 4, values).astype(np.uint8)
        image = stored if part == "seg" else values.astype(np.int16)
        write_volume(case_file(folder, "fixed", part), np.where(brain, image, 0))
    write_volume(
        case_file(folder, "fixed", "t2"), np.where(brain, rng.uniform(-3, 3, shape), 0).astype("f4")
    )
    [case], _ = find_cases(folder, labelled=True)
    return case


def test_format_is_raised_when_the_same_case_gives_another_content(tmp_path):
    content = hashlib.sha256()
    for name, tensor in sorted(pack(fixed_case(tmp_path)).items()):
        # Sums of floats may differ in their last bits between processors.
        exact = tensor.dtype.kind in "iu"
        content.update(repr((name, tensor.dtype.str, tensor.shape)).encode())
        content.update((tensor if exact else np.round(tensor, 6)).tobytes())
    known = {4: "4cbf923d32b5e9ad98de7bd20df554be271f80d39a5f6d97cf98c735caaec183"}
    assert content.hexdigest() == known[FORMAT], "raise FORMAT and add its digest"


def test_cases_of_an_earlier_format_are_cached_again_and_it_is_said(cases, folder, caplog):
    build(cases, folder)
    file = entry(folder, "a")
    content = file.read_bytes()
    with safe_open(file, "np") as cached:
        header = json.loads(cached.metadata()["header"])
    # As written when the cache was keyed by the source text of the modules.
    header["key"] = {**header["key"], "transform": "0" * 64, "digests": ["0" * 64] * 5}
    del header["key"]["format"]
    del header["sources"]
    save_file(load_file(file), folder / "a.safetensors", {"header": json.dumps(header)})
    file.unlink()

    build_cache(cases, folder, workers=1)
    [said] = caplog.messages
    assert "1 case was cached by another version" in said
    assert file.read_bytes() == content
    assert entry(folder, "a") == file
    build_cache(cases, folder, workers=1)
    assert len(caplog.messages) == 1


def test_the_digest_of_the_content_is_that_of_the_voxels(cases, folder):
    first = build(cases, folder)[0].content("a")
    t1, seg = cases[0].images["t1"], cases[0].label
    t1.write_bytes(gzip.compress(gzip.decompress(t1.read_bytes()), 1, mtime=7))
    os.utime(seg, (7, 7))
    assert build(cases, folder)[0].content("a") == first
    for file in (t1, seg):  # an edited voxel of an image, of a label map
        image = nib.load(file)
        voxels = np.asarray(image.dataobj).copy()
        voxels[tuple(np.argwhere(voxels == voxels.max())[0])] = 1
        write_volume(file, voxels, image.affine)
        second = build(cases, folder)[0].content("a")
        assert second != first
        first = second


def test_modalities_are_read_in_the_order_asked_for(cases, folder):
    cache, _ = build(cases, folder)
    flair, t1ce, _, t2 = cache.read("a", 3)[0]
    np.testing.assert_array_equal(cache.only(("t2", "flair")).read("a", 3)[0], [t2, flair])
    np.testing.assert_array_equal(cache.only(["t1ce"]).read("a", 3)[0], [t1ce])


def test_cohorts_with_equal_names_share_a_folder(cases, folder, tmp_path):
    for seed, case_id in enumerate(("a", "b"), 20):
        write_case(tmp_path / "twins", case_id, shape=SHAPE, seed=seed)
    twins = find_cases(tmp_path / "twins", labelled=True)[0]
    expected = [
        build(found, tmp_path / "apart")[0].read("a", 5)[0].copy() for found in (cases, twins)
    ]
    first, _ = build(cases, folder)  # nothing of it is opened yet
    second, _ = build(twins, folder)
    for cache, image in zip((first, second), expected, strict=True):
        np.testing.assert_array_equal(cache.read("a", 5)[0], image)
    assert not np.array_equal(*expected)
    before = identity_of_all(folder)
    for found in (cases, twins):
        build(found, folder)
    assert identity_of_all(folder) == before


def identity_of_all(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.iterdir()}


def test_entry_under_the_name_of_another_content_is_refused(cases, folder, tmp_path):
    cache, _ = build(cases, folder)
    entry(folder, "b").replace(entry(folder, "a"))
    with pytest.raises(DataError, match=r"a, .*a\.[0-9a-f]{16}\.safetensors: .*Start again"):
        cache.read("a", 3)
    with pytest.raises(DataError, match="gone"):
        cache.depth("b")


def test_cache_of_an_earlier_version_is_used_as_it_is(cases, folder):
    expected = build(cases, folder)[0].read("a", 3)[0]
    for case_id in ("a", "b"):
        entry(folder, case_id).rename(folder / f"{case_id}.safetensors")
    before = identity_of_all(folder)
    cache, _ = build(cases, folder)
    assert identity_of_all(folder) == before
    np.testing.assert_array_equal(cache.read("a", 3)[0], expected)


def test_what_another_process_may_read_is_kept(cases, folder):
    build(cases, folder)
    old = entry(folder, "a")
    code = "import sys, pathlib; from cggm.runs import share; share(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; print(flush=True); input()", folder]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    reader.stdout.readline()
    rewrite(cases[0].images["t1"], lambda array: array * 2 + np.arange(SHAPE[2]))
    build(cases, folder)
    assert len(entries(folder)["a"]) == 2
    reader.communicate("\n")
    build(cases, folder)
    assert entry(folder, "a") != old
