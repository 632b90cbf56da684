"""HTAD in the file of its package: classes, splits, standardized features, and what is refused."""

import csv
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch

from cggm.errors import DataError, UserError
from cggm_cls.data.packaged import ACTIVITIES, load_htad

try:
    FILE = Path(
        str(distribution("multiviewstacking").locate_file("multiviewstacking/data/htad.csv"))
    )
except PackageNotFoundError:
    pytest.skip("needs `pip install --no-deps multiviewstacking==0.7.5`", allow_module_level=True)

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def data():
    return load_htad(None, seed=0)


def rows(dataset) -> list[int]:
    return [int(identifier.removeprefix("activity-")) for identifier in dataset.ids]


def table():
    with FILE.open(newline="") as file:
        return [*csv.reader(file)][1:]


def test_splits_are_disjoint_and_complete_and_have_all_classes_alike(data):
    found = [row for split in SPLITS for row in rows(getattr(data, split))]
    assert sorted(found) == list(range(1386))
    counts = torch.stack([torch.bincount(getattr(data, split).target) for split in SPLITS])
    # 180 180 ... by name: 180, 282, 181, 178, 179, 180, 206
    assert counts.sum(0).tolist() == [180, 282, 181, 178, 179, 180, 206]
    assert counts[1].tolist() == [36, 56, 36, 35, 35, 36, 41]
    assert counts[2].tolist() == [54, 84, 54, 53, 53, 54, 61]


def test_classes_and_features_are_those_of_the_row_of_the_file(data):
    raw = table()
    test, train = rows(data.test), rows(data.train)
    assert [ACTIVITIES[k] for k in data.test.target.tolist()] == [raw[row][0] for row in test]
    assert data.names[1] == "eat chips"
    values = np.array([[float(x) for x in row[1:]] for row in raw])
    expected = (values[test] - values[train].mean(0)) / values[train].std(0)
    steps = data.test.batch([5])["inputs"]
    assert steps["audio"].values.shape == (1, 3, 12)
    assert steps["accelerometer"].values.shape == (1, 1, 16)
    found = torch.cat([steps[n].values.reshape(-1) for n in ("audio", "accelerometer")])
    np.testing.assert_allclose(found.numpy(), expected[5], rtol=1e-4, atol=1e-4)


def test_repeated_samples_are_all_in_the_training_split(data):
    raw = [tuple(row) for row in table()]
    repeated = {k for k, row in enumerate(raw) if raw.count(row) > 1}
    assert repeated <= set(rows(data.train))


def test_split_depends_on_the_seed_alone(data):
    assert load_htad(FILE.parent, seed=0).digest == data.digest
    assert load_htad(None, seed=1).digest != data.digest


def test_the_package_is_not_imported(data):
    assert "multiviewstacking" not in sys.modules
    assert not data.simulated
    assert "research and education" in data.notes[0]


def test_absent_and_other_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"htad\.csv, but the file cannot be read"):
        load_htad(tmp_path, seed=0)
    shutil.copy(FILE, tmp_path / "htad.csv")
    (tmp_path / "htad.csv").write_bytes(FILE.read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"Expected sha256 eedeef729072.*but found"):
        load_htad(tmp_path, seed=0)

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("cggm_cls.data.packaged.distribution", absent)
    with pytest.raises(UserError, match=r"not installed.*--no-deps multiviewstacking==0\.7\.5"):
        load_htad(None, seed=0)
