import re
import zipfile

import numpy as np
import pytest
import torch

from cggm.errors import DataError, UserError
from cggm_cls.data.arrays.load import load_array_folder
from cggm_cls.data.arrays.simulation import simulate_array_folder
from tests.quantifiers import every

SPLIT = np.array(["train"] * 4 + ["valid"] * 2 + ["test"] * 2)


def arrays(**changed):
    """Eight samples: a row of two numbers, and up to three steps of one number."""
    found = {
        "lab": np.arange(16.0).reshape(8, 2),
        "ecg": np.arange(24.0).reshape(8, 3, 1),
        "ecg.lengths": np.array([3, 2, 0, 3, 1, 3, 3, 3]),
        "target": np.array(["well", "sick"] * 4),
        "split": SPLIT,
        **changed,
    }
    return {name: array for name, array in found.items() if array is not None}


def written(folder, **changed):
    folder.mkdir(exist_ok=True)
    for name, array in arrays(**changed).items():
        np.save(folder / f"{name}.npy", array)
    return folder


def archived(folder, **changed):
    folder.mkdir(exist_ok=True)
    content = arrays(**changed)
    split_of = content.pop("split")
    for split in ("train", "valid", "test"):
        chosen = split_of == split
        np.savez(folder / f"{split}.npz", **{n: array[chosen] for n, array in content.items()})
    return folder


@pytest.mark.parametrize("write", [written, archived])
def test_rows_and_sequences_keep_their_values_lengths_and_classes(write, tmp_path):
    data = load_array_folder(write(tmp_path / "own"), standardize=False)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [4, 2, 2]
    assert data.widths == {"ecg": 1, "lab": 2}
    assert (data.classes, data.names) == (2, ("sick", "well"))
    batch = data.train.batch([0, 1, 2, 3])
    assert batch["target"].tolist() == [1, 0, 1, 0]
    assert batch["inputs"]["ecg"].mask.sum(1).tolist() == [3, 2, 0, 3]
    assert batch["inputs"]["ecg"].values[1, :, 0].tolist() == [3, 4, 0]
    assert batch["inputs"]["lab"].values[3, 0].tolist() == [6, 7]
    assert data.test.batch([0])["inputs"]["lab"].values.tolist() == [[[12, 13]]]
    assert not data.simulated


def test_features_are_standardized_by_the_training_split(tmp_path):
    data = load_array_folder(written(tmp_path / "own"))
    # lab of the training split is 0, 2, 4, 6 in its first feature: mean 3, deviation sqrt(5)
    rows = data.train.inputs["lab"].values
    assert rows[:, 0].tolist() == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])
    assert data.test.inputs["lab"].values[0, 0].item() == pytest.approx((12 - 3) / 5**0.5)
    # real steps of ecg: 0 1 2, 3 4, none, 9 10 11; padding counts for nothing
    steps = np.array([0, 1, 2, 3, 4, 9, 10, 11.0])
    expected = (steps - steps.mean()) / steps.std()
    assert data.train.inputs["ecg"].values[:, 0].numpy() == pytest.approx(expected, abs=1e-6)
    constant = written(tmp_path / "constant", lab=np.ones((8, 2)))
    assert load_array_folder(constant).train.inputs["lab"].values.abs().max() == 0


def test_numbers_are_a_regression_and_whole_numbers_are_classes(tmp_path):
    target = np.linspace(-1, 250, 8)
    data = load_array_folder(written(tmp_path / "own", target=target))
    assert data.classes is None
    assert data.train.target.tolist() == pytest.approx(target[:4])
    assert set(data.measure(np.array([1.0, 2.0]), np.array([1.0, 3.0]))) > {"mae", "rmse", "r2"}
    data = load_array_folder(written(tmp_path / "own", target=np.array([7, 10, 7, 9] * 2)))
    assert data.names == ("7", "9", "10"), "in the order of numbers"


def test_splits_are_drawn_by_class_and_depend_on_the_seed_alone(tmp_path):
    target = np.repeat([0, 1], [60, 20])
    lab = np.arange(80.0)[:, None]
    folder = written(
        tmp_path / "own", target=target, lab=lab, split=None, ecg=None, **{"ecg.lengths": None}
    )

    def rows(seed, split="test"):
        data = load_array_folder(folder, split_seed=seed, standardize=False)
        assert re.search(r"Splits were drawn, 56 for train, 12 for valid, 12", data.notes[0])
        return getattr(data, split).inputs["lab"].values[:, 0].tolist()

    assert rows(0) == rows(0) != rows(1)
    assert sum(row >= 60 for row in rows(0)) == 3, "15 % of 20"
    everything = rows(0, "train") + rows(0, "valid") + rows(0)
    assert sorted(everything) == list(range(80))


def test_groups_stay_together(tmp_path):
    group = np.repeat([f"patient {n}" for n in range(20)], 4)
    count = {"target": np.arange(80) % 2, "lab": np.arange(80.0)[:, None], "group": group}
    folder = written(tmp_path / "own", split=None, ecg=None, **count, **{"ecg.lengths": None})
    data = load_array_folder(folder, standardize=False)
    owners = [
        {group[int(row)] for row in split.inputs["lab"].values[:, 0]}
        for split in (data.train, data.valid, data.test)
    ]
    assert [len(names) for names in owners] == [14, 3, 3]
    assert len(set.union(*owners)) == 20
    torn = written(tmp_path / "torn", group=np.array(list("aabbccda")))
    with pytest.raises(DataError, match="'a' is in train and test"):
        load_array_folder(torn)
    with pytest.raises(DataError, match="'a' is in train and test"):
        load_array_folder(archived(tmp_path / "archives", group=np.array(list("aabbccda"))))


def test_missing_values_are_refused_or_absent_as_told(tmp_path):
    lab, ecg = np.arange(16.0).reshape(8, 2), np.arange(24.0).reshape(8, 3, 1)
    lab[1, 0], ecg[0, 1], ecg[1, 2] = np.nan, np.inf, np.nan  # the last one is padding
    folder = written(tmp_path / "own", lab=lab, ecg=ecg)
    with pytest.raises(
        DataError, match=r"array ecg.*1 steps or rows.*in sample-0000 \(columns 0\)\..*--missing"
    ):
        load_array_folder(folder)
    data = load_array_folder(folder, missing="absent", standardize=False)
    batch = data.train.batch([0, 1])["inputs"]
    assert batch["ecg"].mask.sum(1).tolist() == [2, 2]
    assert batch["ecg"].values[0, :2, 0].tolist() == [0, 2]
    assert batch["lab"].mask.sum(1).tolist() == [1, 0]
    assert data.notes == (
        "1 steps or rows of ecg held NaN or infinite values and are absent.",
        "1 steps or rows of lab held NaN or infinite values and are absent.",
        "Taken by names alone: modalities ecg (up to 3 steps of 1) of ecg.npy, lab (2 features) of "
        "lab.npy; target target.npy:target; a split. dataset.yaml would say otherwise.",
    )
    assert torch.isfinite(
        load_array_folder(folder, missing="absent").train.inputs["lab"].values
    ).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": None}, "Expected `target` and at least one modality"),
        ({"lab": None, "ecg": None, "ecg.lengths": None}, "at least one modality"),
        ({"lab": np.zeros((7, 2))}, "array lab.*Expected 8 samples, as many as `target`"),
        ({"lab": np.zeros(8)}, r"array lab.*shape \(N, D\) or \(N, T, D\)"),
        ({"lab": np.array([["a", "b"]] * 8)}, "array lab.*Expected numbers"),
        ({"lab": np.zeros((8, 2), complex)}, "array lab.*Expected numbers"),
        ({"lab": np.zeros((8, 0))}, "array lab"),
        ({"target": np.zeros((8, 1))}, r"array target.*shape \(N,\)"),
        ({"target": np.array(1.0)}, r"array target.*shape \(N,\)"),
        ({"target": np.array([np.nan, 1] * 4)}, "4 of 8 are not, the first .* of sample-0000"),
        ({"target": np.array(["", "a"] * 4)}, "array target.*4 are empty, the first in row 0"),
        ({"id": np.array([*"abcdefg", ""])}, "array id.*1 are empty, the first in row 7"),
        ({"id": np.array([*range(7), np.nan])}, "array id.*1 are empty, the first in row 7"),
        ({"target": np.array(["a"] * 8)}, "at least two classes"),
        (
            {"target": np.array(list("ababacab"))},
            "Expected the classes of train in valid, but found 'c' too, in sample-0005",
        ),
        ({"ecg.lengths": np.array([4] + [1] * 7)}, "lengths from 0 to 3, the steps of 'ecg'"),
        ({"ecg.lengths": np.array([1.0] * 8)}, "whole numbers beside sequences 'ecg'"),
        ({"ecg": None}, "whole numbers beside sequences 'ecg'"),
        ({"split": np.array(["train"] * 6 + ["valid"] * 2)}, "found no sample of test"),
        ({"split": np.array(["train", "dev"] * 4)}, "found 'dev'"),
        (
            {"id": np.array(list("abcdefga"))},
            r"'a' is in rows 0 and 7 \(from 0\), and 1 rows repeat one",
        ),
        ({"items": np.zeros((8, 1))}, "the modality 'items'.*Rename"),
        ({"left+right": np.zeros((8, 1))}, r"the modality 'left\+right'"),
        ({"split": None, "target": np.arange(8)}, "enough samples or groups to draw splits"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_array_folder(written(tmp_path / "own", **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": np.array([0.0, 1] * 20)}, "2 different whole numbers of 40.*target.npy"),
        ({"target": np.arange(40)}, "40 different whole numbers.*`kind: classes` or `kind: numb"),
        ({"target": np.full(40, 0.5)}, r"all are 0\.5"),
        ({"lab": np.linspace(-1, 1, 40)[:, None] * 1e300}, r"lab\.npy.*some are too large"),
        ({"lab": np.array([[1.0, np.nan]] * 40)}, r"lab\.npy.*1 features hold none: 1"),
        ({"group": np.zeros(40, int)}, "train would have 40, valid would have 0"),
    ],
)
def test_what_could_be_two_things_is_asked_for(changed, message, tmp_path):
    content = {"lab": np.linspace(0, 1, 40)[:, None], "target": np.array(["a", "b"] * 20)}
    for name, array in {**content, **changed}.items():
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(UserError) as caught:
        load_array_folder(tmp_path, missing="absent")
    words = message.split(".*")
    assert every(re.search(word, str(caught.value)) for word in words)


def test_what_was_seen_in_training_is_counted(tmp_path):
    lab = np.arange(8.0)[:, None]
    lab[5:7] = lab[0], lab[1]
    data = load_array_folder(written(tmp_path / "own", lab=lab, ecg=None, **{"ecg.lengths": None}))
    assert (
        "1 samples of valid have the features of one in train, such as sample-0005"
        in (data.notes[0])
    )
    assert "1 samples of test have the features of one in train" in data.notes[1]
    assert "features of lab are constant" not in " ".join(data.notes)
    constant = written(tmp_path / "c", lab=np.full((8, 2), 0.1), ecg=None, **{"ecg.lengths": None})
    data = load_array_folder(constant)
    assert "2 of 2 features of lab are constant in training and tell nothing: 0, 1." in data.notes
    assert data.test.inputs["lab"].values.abs().max() == 0, "0.1 has no exact mean"


def hinted(folder, **changed):
    """Notes on forty samples, of which nothing is strange but what is changed."""
    content = {"target": np.array(["a", "b"] * 20), "lab": np.linspace(0, 1, 40)[:, None] ** 2}
    content |= {"ecg": np.ones((40, 3, 1)) + np.arange(40.0)[:, None, None], "split": None}
    return load_array_folder(written(folder, **{**content, "ecg.lengths": None, **changed})).notes


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"target": np.array(["a", "b", "a", "nan"] * 10)}, "10 samples are of a class 'nan'"),
        ({"target": np.arange(40) % 4 - 1}, "10 samples are of a class '-1'"),
        ({"target": np.array(["a", "b", "A "] * 13 + ["b"])}, "spaces alone: 'a', 'A '."),
        (
            {"lab": np.stack([np.arange(40.0) ** 2, np.arange(40) % 2], 1)},
            "1 features of lab tell the target by themselves, as a copy of it would: 1.",
        ),
        (
            {"target": np.arange(40) ** 2 / 7, "lab": (np.arange(40) ** 2 / 7)[:, None]},
            "1 features of lab tell the target",
        ),
        ({"ecg": np.tri(40, 3)[:, :, None]}, "2 of 40 sequences of ecg end in zeros"),
        ({"ecg": None}, "There is one modality, lab: no method has anything to balance."),
        ({"again": np.linspace(0, 1, 40)[:, None] ** 2}, "again and lab hold the same values."),
    ],
)
def test_what_may_not_be_what_it_seems_is_said(changed, told, tmp_path):
    assert told in " ".join(hinted(tmp_path / "own", **changed))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"target": np.array([-1, 1] * 20)},
        {"target": np.array(["unknown origin", "b"] * 20)},
        {"target": np.array(["a", "b", "c", "d"] * 9 + ["a", "b", "c", "e"])},
        {"target": np.linspace(-1, 1, 40)},
        {"ecg": np.tri(40, 3)[:, :, None], "ecg.lengths": np.array([1, 2, *[3] * 38])},
    ],
)
def test_what_is_as_it_seems_is_not_spoken_of(changed, tmp_path):
    notes = " ".join(hinted(tmp_path / "own", **changed))
    told = ("often stands", "case or spaces", "tell the target", "end in zeros", "one modality")
    for words in (*told, "the same values"):
        assert words not in notes


def test_one_letter_of_two_systems_is_one_letter(tmp_path):
    both = np.array(["\u00c4", "A\u0308", "B", "B"] * 10)
    folder = written(
        tmp_path / "own",
        target=both,
        lab=np.arange(40.0)[:, None],
        ecg=None,
        split=None,
        **{"ecg.lengths": None},
    )
    assert load_array_folder(folder).names == ("B", "\u00c4")


def test_archives_must_be_alike(tmp_path):
    folder = archived(tmp_path / "own")
    lab, target = np.zeros((2, 3)), np.array(["well", "sick"])
    np.savez(folder / "test.npz", lab=lab, target=target)
    with pytest.raises(DataError, match=r"test.npz.*Expected the modality ecg in every split"):
        load_array_folder(folder)
    np.savez(folder / "test.npz", lab=lab, ecg=np.zeros((2, 3, 1)), target=target)
    with pytest.raises(DataError, match=r"array lab.*as in train"):
        load_array_folder(folder)
    (folder / "test.npz").unlink()
    with pytest.raises(DataError, match="there is no such file"):
        load_array_folder(folder)


def test_files_that_are_no_arrays_are_refused_and_nothing_in_them_runs(tmp_path):
    folder = written(tmp_path / "own")
    np.save(folder / "lab.npy", np.array([{}] * 8, object), allow_pickle=True)
    with pytest.raises(DataError, match=r"lab.npy.*cannot be read.*without objects.*unequal le"):
        load_array_folder(folder)
    (folder / "lab.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"lab.npy.*cannot be read"):
        load_array_folder(folder)
    folder = archived(tmp_path / "archives")
    (folder / "valid.npz").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"valid.npz.*cannot be read"):
        load_array_folder(folder)
    with pytest.raises(DataError, match="Expected a folder, but there is none"):
        load_array_folder(tmp_path / "absent")


def test_an_archive_that_declares_more_than_memory_is_not_inflated(tmp_path, monkeypatch):
    folder = archived(tmp_path / "own")
    monkeypatch.setattr("cggm_cls.data.arrays.files._LARGEST", 100)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(DataError, match="it declares"):
        load_array_folder(folder)


def test_the_demo_is_marked_and_made_once(tmp_path):
    simulate_array_folder(tmp_path / "demo", samples=60)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "demo").iterdir()}
    simulate_array_folder(tmp_path / "demo", samples=60)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "demo").iterdir()} == before
    data = load_array_folder(tmp_path / "demo")
    assert data.simulated
    assert data.names == ("high", "low", "middle")
    assert data.widths == {"signal": 8, "table": 12}
