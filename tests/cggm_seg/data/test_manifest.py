import json
from dataclasses import replace

import pytest

from cggm.errors import UserError
from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import find_cases
from cggm_seg.data.findings import Code
from cggm_seg.data.manifest import (
    FileRecord,
    append_records,
    manifest_file,
    read_manifest,
    recorded_digests,
    write_manifest,
)
from cggm_seg.verification.cohort import verify_data
from tests.cggm_seg.nifti import write_case

SHAPE = (20, 18, 16)


RECORD = FileRecord(
    path="a",
    size=3,
    mtime_ns=10**18 + 1,
    sha256="a",
    case="c",
    modality="t1",
    shape=(1, 2, 3),
    spacing=(1.0, 1.0, 2.5),
    orientation="LPS",
    dtype="int16",
    voxels="v",
    statistics=[0.5, None],
    format=1,
)


def record(path, **changes):
    return replace(RECORD, path=path, **changes)


@pytest.fixture
def data(tmp_path):
    for seed, case_id in enumerate("ab"):
        write_case(tmp_path / "data", case_id, shape=SHAPE, seed=seed)
    return tmp_path / "data"


def test_records_survive_the_round_trip_sorted_by_path(tmp_path):
    file = tmp_path / "manifest.jsonl"
    write_manifest(file, [record("b", has_error=True), record("a é\u2028x")])
    assert read_manifest(file) == {
        r.path: r for r in (record("a é\u2028x"), record("b", has_error=True))
    }
    assert [json.loads(line)["path"] for line in file.read_text().split("\n")[:-1]] == [
        "a é\u2028x",
        "b",
    ]
    assert read_manifest(tmp_path / "none.jsonl") == {}


def test_appended_records_count_until_the_manifest_is_written_however_they_were_cut(tmp_path):
    file = tmp_path / "manifest.jsonl"
    write_manifest(file, [record("a"), record("b")])
    append_records(file, [record("b", sha256="new"), record("c")])
    [journal] = [path for path in tmp_path.iterdir() if path != file]
    journal.write_bytes(journal.read_bytes()[:-20])  # c is torn
    append_records(file, [record("d")])
    assert read_manifest(file) == {
        r.path: r for r in (record("a"), record("b", sha256="new"), record("d"))
    }
    write_manifest(file, [record("e")])
    assert list(tmp_path.iterdir()) == [file]
    assert read_manifest(file) == {"e": record("e")}


def of_record(**changes):
    return json.dumps({**json.loads(record("a").to_json()), **changes}).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        *(b"x\n", b"{}\n", b"[]\n", b"\xff\n", b'{"path": "a"}\n'),
        *(b'{"a":' * 100_000 + b"\n", of_record(size="x"), of_record(shape=[[1]])),
        of_record(unknown=1),
    ],
)
def test_manifest_that_is_none_is_refused(tmp_path, content):
    file = tmp_path / "manifest.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=str(file)):
        read_manifest(file)


def test_digests_by_file_and_a_manifest_that_is_not_there(data, tmp_path):
    assert recorded_digests(data) == {}
    with pytest.raises(UserError, match=r"nowhere is no file\. Verify the data first"):
        recorded_digests(data, tmp_path / "nowhere")
    verify_data(data, workers=1, progress=False)
    files = set(data.rglob("*.nii.gz"))
    assert set(recorded_digests(data)) == files
    assert recorded_digests(data, manifest_file(data)) == recorded_digests(data)


@pytest.mark.parametrize("cached", [True, False])
def test_cache_refuses_a_file_that_differs_from_the_manifest(data, tmp_path, cached):
    verify_data(data, workers=1, progress=False)
    recorded = recorded_digests(data)
    write_case(data, "a", shape=SHAPE, seed=7)
    cases, _ = find_cases(data, labelled=True)
    folder = tmp_path / "cache"
    if cached:  # made before, from the other content
        build_cache(cases, folder, workers=1, progress=False)
    for workers in (1, 2):
        cache, [error] = build_cache(
            cases, folder, recorded=recorded, workers=workers, progress=False
        )
        assert cache.case_ids == ("b",)
        assert (error.code, error.case) == (Code.CHANGED, "a")
        assert error.file == cases[0].images["flair"]

    write_case(data, "a", shape=SHAPE, seed=0)
    cache, errors = build_cache(cases, folder, recorded=recorded, workers=1, progress=False)
    assert (cache.case_ids, errors) == (("a", "b"), [])


def test_recorded_content_builds_nothing_twice(data, tmp_path):
    verify_data(data, workers=1, progress=False)
    cases, _ = find_cases(data, labelled=True)
    folder = tmp_path / "cache"
    for _ in range(2):
        build_cache(cases, folder, recorded=recorded_digests(data), workers=1, progress=False)
        times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    build_cache(cases, folder, workers=1, progress=False)
    assert times == {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
