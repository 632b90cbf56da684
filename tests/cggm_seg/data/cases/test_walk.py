"""Folders that cannot be read, links in circles, and names that cannot be shown."""

import logging
import os
import stat

import pytest

from cggm.errors import DataError
from cggm_seg.data.cases import find_cases, survey_cases
from cggm_seg.data.findings import Code
from tests.cggm_seg.nifti import write_case

TINY = (10, 9, 8)


@pytest.fixture
def data(tmp_path):
    for case_id in ("a", "b"):
        write_case(tmp_path / "data" / case_id, case_id, shape=TINY, layout="flat")
    return tmp_path / "data"


@pytest.fixture
def refused(monkeypatch):
    """Has folders without permissions refused, to the superuser as well."""
    scan = os.scandir

    def scandir(folder):
        if not stat.S_IMODE(os.stat(folder).st_mode):
            raise PermissionError(13, "Permission denied", os.fspath(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)


def ids(folder):
    return [case.id for case in find_cases(folder, labelled=True)[0]]


def test_folder_of_the_system_is_left_out_and_named(data, refused, caplog):
    (data / "lost+found").mkdir(mode=0)
    with caplog.at_level(logging.WARNING):
        cases, errors = find_cases(data, labelled=True)
    assert [case.id for case in cases] == ["a", "b"]
    assert errors == []
    assert [m for m in caplog.messages if str(data / "lost+found") in m]
    assert survey_cases(data).findings == []
    assert any("lost+found" in note for note in survey_cases(data).notes)


def test_another_folder_that_cannot_be_read_is_an_error_of_its_own(data, refused):
    (data / "c").mkdir(mode=0)
    cases, [error] = find_cases(data, labelled=True)
    assert [case.id for case in cases] == ["a", "b"]
    assert (error.case, error.file) == ("c", data / "c")
    [finding] = survey_cases(data).findings
    assert (finding.code, finding.file) == (Code.UNREADABLE, data / "c")


def test_data_folder_that_cannot_be_read_is_refused(data, refused):
    data.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        find_cases(data, labelled=True)
    data.chmod(0o700)


def test_links_make_nothing_ambiguous(data):
    (data / "a" / "again").symlink_to(data)  # a circle
    (data / "0").symlink_to(data / "b")  # two ways to one folder
    (data / "itself").symlink_to(data / "itself")
    cases, errors = find_cases(data, labelled=True)
    assert errors == []
    assert [case.id for case in cases] == ["a", "b"]
    assert cases[1].images["t1"].parent == data / "b"


def test_folders_elsewhere_are_found_by_links(data, tmp_path):
    (tmp_path / "study").mkdir()
    for name in ("b", "a"):
        (tmp_path / "study" / name).symlink_to(data / name)
    (tmp_path / "study" / "all").symlink_to(data)
    assert ids(tmp_path / "study") == ["a", "b"]


@pytest.mark.parametrize("name", ["c\nd", "c\x1b[31m", "c\udcff"])
def test_name_that_cannot_be_shown_is_refused_in_one_line(data, name):
    write_case(data / "odd", name, shape=TINY, layout="flat")
    cases, [error] = find_cases(data, labelled=True)
    assert [case.id for case in cases] == ["a", "b"]
    assert str(error).isprintable()
    assert "Rename" in str(error)
    findings = [f for f in survey_cases(data).findings if f.is_error]
    assert [f.code for f in findings] == [Code.BAD_NAME]
