import pytest
from hypothesis import given
from hypothesis import strategies as st

from cggm.errors import UserError
from cggm_seg.data.split import Split, split_cases
from tests.quantifiers import every

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


# Patients a to e with 1, 2, 3, 1 and 5 examinations.
COUNTS = (1, 2, 3, 1, 5)
PATIENTS = {f"{p}{k}": p for p, count in zip("abcde", COUNTS, strict=True) for k in range(count)}


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=30).filter(lambda x: len(set(x)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 99),
)
def test_no_patient_is_in_both(owners, fraction, seed):
    patients = {f"case{k}": f"p{owner}" for k, owner in enumerate(owners)}
    split = split_cases([*patients], fraction, seed, patients=patients)
    parts = [{patients[case] for case in part} for part in (split.training, split.validation)]
    assert parts[0].isdisjoint(parts[1])
    assert every(parts)
    assert sorted(split.training + split.validation) == sorted(patients)
    assert split.patients == patients


def test_share_is_as_near_as_whole_patients_allow():
    for seed in range(20):
        split = split_cases([*PATIENTS], 0.25, seed, patients=PATIENTS)
        first = split.validation[0][0]
        assert len(split.validation) in (5,) if first == "e" else (1, 2, 3, 4)


def test_patients_with_one_case_each_change_nothing():
    names = {case: f"patient {10 - k}" for k, case in enumerate(TEN)}
    split = split_cases(TEN, 0.3, 4, patients=names)
    assert split.validation == split_cases(TEN, 0.3, 4).validation


@pytest.mark.parametrize(("count", "sizes"), [(5, [2] * 5), (3, [3, 3, 4]), (10, [1] * 10)])
def test_folds_hold_out_every_case_once(count, sizes):
    splits = [split_cases(TEN, 0.2, 7, fold=(k, count)) for k in range(1, count + 1)]
    assert sorted(len(split.validation) for split in splits) == sizes
    assert sorted(case for split in splits for case in split.validation) == TEN
    assert every(set(s.training) == set(TEN) - set(s.validation) for s in splits)
    assert splits[1].to_dict()["fold"] == {"number": 2, "of": count}


def test_folds_of_patients_are_about_as_large_as_each_other():
    splits = [split_cases([*PATIENTS], 0.2, 7, patients=PATIENTS, fold=(k, 3)) for k in (1, 2, 3)]
    held_out = [{case[0] for case in split.validation} for split in splits]
    assert sorted(patient for part in held_out for patient in part) == [*"abcde"]
    assert every(3 <= len(split.validation) <= 5 for split in splits)


def test_too_few_patients_are_refused_with_what_to_do():
    patients = dict.fromkeys(TEN, "one")
    with pytest.raises(
        UserError, match=r"at least 2 patients, but the 10 cases are of 1"
    ) as caught:
        split_cases(TEN, 0.2, 0, patients=patients)
    assert "--patients" in caught.value.fix
    with pytest.raises(UserError, match="at least 11 cases, one for each fold, but got 10"):
        split_cases(TEN, 0.2, 0, fold=(1, 11))
