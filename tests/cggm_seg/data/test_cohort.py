from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cggm.errors import DataError, UserError
from cggm.runs.files import file_digest
from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import find_cases
from cggm_seg.data.cohort import Split, open_cohort, split_cases
from cggm_seg.verification.cohort import verify_data
from tests.cggm_seg.nifti import case_file, write_case

NAMES = st.characters(codec="utf-8", exclude_characters="\0/")  # as in file names
TEN = [f"case{k}" for k in range(10)]


@given(
    st.sets(st.text(NAMES, min_size=1), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
)
def test_every_case_has_one_role(names, fraction, seed):
    split = split_cases(sorted(names), fraction, seed)
    assert sorted(split.training + split.validation) == sorted(names)
    assert min(len(split.training), len(split.validation)) >= 1
    assert abs(len(split.validation) - fraction * len(names)) <= 1


def test_the_seed_alone_decides():
    assert split_cases(TEN, 0.2, 0) == split_cases(TEN[::-1], 0.2, 0)
    assert len(split_cases(TEN, 0.2, 0).validation) == 2
    held_out = {split_cases(TEN, 0.2, seed).validation for seed in range(20)}
    assert len(held_out) > 10
    assert {name for pair in held_out for name in pair} == set(TEN)


def test_identifiers_are_sorted_plain_strings():
    split = split_cases(TEN, 0.5, 1)
    for names in (split.training, split.validation):
        assert list(names) == sorted(names)
        assert {type(name) for name in names} == {str}


@pytest.mark.parametrize("names", [[], ["alone"]])
def test_fewer_than_two_cases_are_refused(names):
    with pytest.raises(UserError, match=rf"at least 2 cases.* but got {len(names)}\."):
        split_cases(names, 0.2, 0)


def test_digest_tells_cases_and_roles_apart():
    splits = [
        Split(("a", "b"), ("c",)),
        Split(("a",), ("b", "c")),
        Split(("a", "b"), ("d",)),
        Split(("ab",), ("c",)),
        Split(("c",), ("a", "b")),
    ]
    assert len({split.digest() for split in splits}) == len(splits)
    assert splits[0].digest() == Split(("a", "b"), ("c",)).digest()


@dataclass(frozen=True)
class Options:
    used: tuple[str, ...] = ("t1ce", "flair")
    cache: Path | None = None
    processes: int = 1
    strict: bool = False
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
    assert cohort.split == split_cases(cohort.cases, 0.3, 5)
    for z in range(cache.depth("case2")):
        np.testing.assert_array_equal(
            cohort.cache.read("case2", z)[0], cache.only(("t1ce", "flair")).read("case2", z)[0]
        )
    assert cohort.digests["case1"]["t2"] == file_digest(cases[1].images["t2"])


def test_bad_cases_are_left_out_and_listed(data, tmp_path):
    damaged = case_file(data, "case0", "t1")
    damaged.write_bytes(damaged.read_bytes()[:500])
    case_file(data, "case1", "seg").unlink()
    cohort = open_cohort(data, Options(cache=tmp_path / "cache"))
    assert [problem.case for problem in cohort.problems] == ["case1", "case0"]
    assert list(cohort.cases) == ["case2", "case3"]
    assert sorted(cohort.split.training + cohort.split.validation) == ["case2", "case3"]
    assert sorted(file.stem for file in (tmp_path / "cache").iterdir()) == ["case2", "case3"]
    with pytest.raises(DataError, match="case1"):
        open_cohort(data, Options(strict=True))


def test_two_good_cases_are_needed_and_the_manifest_is_heeded(data):
    verify_data(data, workers=1, progress=False)
    for seed in range(3):
        write_case(data, f"case{seed}", shape=(20, 18, 16), seed=seed + 10)
    with pytest.raises(UserError, match=r"at least 2 good cases, but found 1 among 4") as caught:
        open_cohort(data, Options())
    assert "the manifest records" in caught.value.fix
