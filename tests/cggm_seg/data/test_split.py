import pytest
from hypothesis import given
from hypothesis import strategies as st

from cggm.errors import UserError
from cggm_seg.data.split import Split, split_cases

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
