"""What a verification keeps, and what a second one makes of it."""

import os
import shutil

import pytest

from cggm.errors import DataError, UserError
from cggm_seg.data.findings import Code
from cggm_seg.data.manifest import read_manifest
from tests.cggm_seg.nifti import case_file, write_volume
from tests.cggm_seg.verifying import SHAPE, found, stored, verify, write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def test_sound_data_has_no_finding_and_a_record_of_every_file(data):
    verification = verify(data, workers=2)
    assert verification.findings == []
    assert (verification.cases, verification.files, verification.unchanged) == (3, 15, 0)
    records = read_manifest(verification.manifest)
    assert set(records) == {str(file.relative_to(data)) for file in data.rglob("*.nii.gz")}
    record = records["a/a_t1.nii.gz"]
    file = case_file(data, "a", "t1")
    assert (record.size, record.mtime_ns) == (file.stat().st_size, file.stat().st_mtime_ns)
    assert (record.shape, record.spacing, record.orientation) == (SHAPE, (1, 1, 1), "LPS")
    assert (record.case, record.modality, record.dtype) == ("a", "t1", "int16")
    assert records["a/a_seg.nii.gz"].dtype == "uint8"


def test_second_verification_reads_what_changed_and_nothing_else(data):
    verify(data)
    assert verify(data).unchanged == 15
    os.utime(case_file(data, "b", "t1"))
    assert verify(data).unchanged == 10
    assert verify(data).unchanged == 15
    assert verify(data, fresh=True).unchanged == 0


def test_changed_file_is_a_finding_until_it_is_restored(data):
    verify(data)
    file = case_file(data, "b", "t1")
    content = file.read_bytes()
    for _ in range(2):
        write_volume(file, stored(file) + (stored(file) > 0))
        assert found(data) == [(Code.CHANGED, "b", file.name)]
    file.write_bytes(content)
    assert found(data) == []


def test_changed_file_is_accepted_once_its_line_is_deleted(data):
    manifest = verify(data).manifest
    file = case_file(data, "b", "t1")
    write_volume(file, stored(file) + (stored(file) > 0))
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if "b_t1." not in line))
    assert found(data) == []
    assert len(read_manifest(manifest)) == 15


def test_change_that_left_size_and_time_is_found_by_a_fresh_verification(data):
    verify(data)
    file = case_file(data, "b", "t1")
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[5] ^= 1  # the time that gzip stores, which changes no voxel
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert found(data) == []
    assert found(data, fresh=True) == [(Code.CHANGED, "b", file.name)]
    assert found(data) == [(Code.CHANGED, "b", file.name)]


def test_recorded_file_or_case_that_is_gone(data):
    verify(data)
    case_file(data, "b", "t1").unlink()
    shutil.rmtree(data / "c")
    expected = {(Code.MISSING, "b", "b_t1.nii.gz")}
    expected |= {
        (Code.MISSING, "c", f"c_{part}.nii.gz") for part in ("flair", "t1ce", "t1", "t2", "seg")
    }
    for _ in range(2):
        findings = found(data)
        assert (set(findings), len(findings)) == (expected, 6)


def test_manifest_goes_elsewhere_and_the_data_stays_untouched(data, tmp_path):
    before = sorted(data.rglob("*"))
    verification = verify(data, output=tmp_path / "out" / "deep")
    assert verification.manifest == tmp_path / "out" / "deep" / "manifest.jsonl"
    assert sorted(data.rglob("*")) == before
    assert verify(data, output=tmp_path / "out" / "deep").unchanged == 15


def test_manifest_that_cannot_be_kept_names_the_option(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output"):
        verify(data, output=tmp_path / "file")


def test_folder_without_cases(tmp_path):
    with pytest.raises(DataError, match="Expected BraTS cases"):
        verify(tmp_path)
    assert list(tmp_path.iterdir()) == []
