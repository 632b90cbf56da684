from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cggm.errors import DataError, UserError
from cggm_seg.data.cache import build_cache, entries
from cggm_seg.data.cases import find_cases
from cggm_seg.data.cohort import open_cohort
from cggm_seg.data.findings import Code
from cggm_seg.data.split import split_cases
from cggm_seg.verification.cohort import verify_data
from tests.cggm_seg.nifti import case_file, write_case
from tests.quantifiers import every


@dataclass(frozen=True)
class Options:
    used: tuple[str, ...] = ("t1ce", "flair")
    cache: Path | None = None
    manifest: Path | None = None
    processes: int = 1
    strict: bool = False
    missing: str = "refuse"
    labels: str | None = None
    patients: Path | None = None
    folds: int | None = None
    fold: int | None = None
    validation_fraction: float = 0.3
    seed: int = 5


@pytest.fixture
def data(tmp_path):
    for seed in range(4):
        write_case(tmp_path / "data", f"case{seed}", shape=(20, 18, 16), seed=seed)
    return tmp_path / "data"


def test_cohort_is_what_its_parts_give(data):
    cohort = open_cohort(data, Options())
    cases, _ = find_cases(data, labelled=True)
    cache, _ = build_cache(cases, data / ".slices", workers=1, progress=False)

    assert cohort.cases == {case.id: case for case in cases}
    assert cohort.problems == []
    assert cohort.split == split_cases([*cohort.cases], 0.3, 5)
    for z in range(cache.depth("case2")):
        np.testing.assert_array_equal(
            cohort.cache.read("case2", z)[0], cache.only(("t1ce", "flair")).read("case2", z)[0]
        )
    assert cohort.contents == {case.id: cache.content(case.id) for case in cases}


def test_bad_cases_are_left_out_and_listed(data, tmp_path):
    damaged = case_file(data, "case0", "t1")
    damaged.write_bytes(damaged.read_bytes()[:500])
    case_file(data, "case1", "seg").unlink()
    cohort = open_cohort(data, Options(cache=tmp_path / "cache"))
    assert [problem.case for problem in cohort.problems] == ["case1", "case0"]
    assert list(cohort.cases) == ["case2", "case3"]
    assert sorted(cohort.split.training + cohort.split.validation) == ["case2", "case3"]
    assert [*entries(tmp_path / "cache")] == ["case2", "case3"]
    with pytest.raises(DataError, match="case1"):
        open_cohort(data, Options(strict=True))


def test_two_good_cases_are_needed_and_the_manifest_is_heeded(data):
    verify_data(data, workers=1, progress=False)
    for seed in range(3):
        write_case(data, f"case{seed}", shape=(20, 18, 16), seed=seed + 10)
    with pytest.raises(UserError, match=r"at least 2 good cases, but found 1 among 4") as caught:
        open_cohort(data, Options())
    assert "the manifest records" in caught.value.fix


def test_modality_that_is_not_used_may_be_absent(data):
    case_file(data, "case0", "t1").unlink()
    case_file(data, "case1", "t2").unlink()
    cohort = open_cohort(data, Options())
    assert (sorted(cohort.cases), cohort.problems) == (["case0", "case1", "case2", "case3"], [])
    assert cohort.cache.read("case0", 3)[0].shape[0] == 2
    with pytest.raises(UserError, match="t1 image of this case"):
        open_cohort(data, Options(used=("t1ce", "t1"), strict=True))


def test_examinations_of_a_patient_stay_together_by_name_or_by_table(tmp_path):
    data = tmp_path / "data"
    for seed in range(6):
        name = f"BraTS-GLI-0000{seed // 2}-{seed % 2:03d}"
        write_case(data, name, shape=(20, 18, 16), seed=seed, naming="2023")
    split = open_cohort(data, Options()).split
    assert {case[-3:] for case in split.validation} == {"000", "001"}
    assert (len(split.validation), len({case[:-4] for case in split.validation})) == (2, 1)
    assert split.patients["BraTS-GLI-00002-001"] == "BraTS-GLI-00002"

    table = tmp_path / "patients.csv"
    lines = [f"{case},{'x' if case[-1] == '0' else 'y'},1970" for case in split.patients]
    table.write_text("\n".join(["Case,patient,born", *lines, "other,z,1980"]))
    split = open_cohort(data, Options(patients=table)).split
    assert {case[-1] for case in split.validation} in ({"0"}, {"1"})
    assert len(split.validation) == 3
    table.write_text("\n".join(["case,patient", *(line[:-5] for line in lines[1:])]))
    with pytest.raises(DataError, match=r"BraTS-GLI-00000-000: Expected the patient of this case"):
        open_cohort(data, Options(patients=table))
    table.write_text("case,subject\na,b\n")
    with pytest.raises(DataError, match="expected the columns case and patient, but found case, s"):
        open_cohort(data, Options(patients=table))


def test_label_scheme_is_that_of_the_option(data):
    cohort = open_cohort(data, Options(labels="1=ED,2=NCR,4=ET"))
    assert dict(cohort.cases["case0"].labels.classes) == {0: 0, 1: 2, 2: 1, 4: 3}
    counts = cohort.cache.class_counts("case0").sum(axis=0)
    again = open_cohort(data, Options()).cache.class_counts("case0").sum(axis=0)
    assert counts.tolist() == again[[0, 2, 1, 3]].tolist()


def test_files_of_modalities_that_are_not_used_need_not_be_there(data):
    for seed in range(4):
        for part in ("t1", "t2") if seed else ("t1",):
            case_file(data, f"case{seed}", part).unlink()
    cohort = open_cohort(data, Options())
    assert len(cohort.cases) == 4
    assert every([*case.images] == ["t1ce", "flair"] for case in cohort.cases.values())
    assert cohort.lacking == {}
    assert cohort.cache.read("case0", 3)[0].any(axis=(1, 2)).all()


def test_cases_that_lack_modalities_are_left_out_or_taken_as_they_are(data):
    case_file(data, "case1", "t1ce").unlink()
    case_file(data, "case3", "t1ce").unlink()
    for part in ("flair", "t1ce"):
        case_file(data, "case2", part).unlink()

    refused = open_cohort(data, Options(used=("flair", "t2")))
    assert [problem.case for problem in refused.problems] == ["case2"]

    cohort = open_cohort(data, Options(missing="allow"))
    [problem] = cohort.problems
    assert (problem.case, problem.code) == ("case2", Code.MISSING)
    assert "at least one of t1ce, flair" in problem.what
    assert list(cohort.cases) == ["case0", "case1", "case3"]
    assert cohort.lacking == {"t1ce": ["case1", "case3"]}
    image, _ = cohort.cache.read("case1", 3)
    assert (image[0].any(), image[1].any()) == (False, True)


def test_resumed_build_and_a_second_one_find_what_lacks_modalities(data, tmp_path):
    case_file(data, "case1", "t1ce").unlink()
    options = Options(missing="allow", cache=tmp_path / "cache")
    first = open_cohort(data, options)
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    again = open_cohort(data, options)
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()} == times
    assert again.lacking == first.lacking == {"t1ce": ["case1"]}
    assert again.contents == first.contents


def test_manifest_that_lies_elsewhere_is_used(data, tmp_path):
    verification = verify_data(data, output=tmp_path / "V", workers=1, progress=False)
    assert f"--manifest {verification.manifest}" in verification.summary()
    write_case(data, "case2", shape=(20, 18, 16), seed=9)
    for number, manifest in enumerate((tmp_path / "V", verification.manifest)):
        cohort = open_cohort(data, Options(cache=tmp_path / f"{number}", manifest=manifest))
        assert {problem.case for problem in cohort.problems} == {"case2"}
        assert cohort.problems[0].code is Code.CHANGED
    with pytest.raises(UserError, match="nowhere is no file"):
        open_cohort(data, Options(manifest=tmp_path / "nowhere"))
