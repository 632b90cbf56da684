import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from cggm.errors import DataError, UserError
from cggm.runs import holding
from cggm_cls.data.food101.samples import load_food101, read_food101
from cggm_cls.data.food101.simulation import simulate_food101
from cggm_cls.data.food101.store import FeatureStore, open_features
from cggm_cls.data.food101.writer import FeatureWriter
from tests.disk import file_size_limit

KEY = {
    "records": "r",
    "split": "s",
    "text_model": "t",
    "image_model": "i",
    "transform": {"max_tokens": 50, "size": 32, "views": 2},
}
WIDTHS = {"text": 3, "image": 2}
SAMPLES = {
    "train": {"ids": ["a", "b", "c"], "labels": [0, 1, 0]},
    "valid": {"ids": ["d"], "labels": [1]},
    "test": {"ids": ["e", "f"], "labels": [1, 0]},
}
VIEWS = {"text": (1, 1, 1), "image": (2, 1, 1)}
FACTS = {"simulated": True, "classes": ["x", "y"], "notes": ["A note."]}


def sequence(length: int, width: int, first: int) -> np.ndarray:
    return (first + np.arange(length * width).reshape(length, width)).astype(np.float16)


TEXTS = [sequence(length, 3, 100 * n) for n, length in enumerate([2, 4, 0, 1, 3, 2])]
IMAGES = [sequence(2, 2, 10 * n) for n in range(9)]  # two views of a, b and c, one of d, e and f


def write(folder, key=KEY, skipped=()) -> FeatureStore:
    writer = FeatureWriter(folder, {n: k for n, k in key.items() if n != "records"}, WIDTHS)
    writer.commit({"text": TEXTS[:2], "image": IMAGES[:4]}, samples=2, skipped={}, records="r")
    writer.commit(
        {"text": TEXTS[2:], "image": IMAGES[4:]}, samples=4, skipped=dict(skipped), records="r"
    )
    writer.finish(key["records"], SAMPLES, VIEWS, FACTS)
    return open_features(folder, key)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "store")
    return tmp_path / "store"


def test_splits_come_back_as_they_were_written(folder):
    data = open_features(folder).task_data(seed=5)
    assert (data.classes, data.simulated, data.notes) == (2, True, ("A note.",))
    assert data.names == tuple(FACTS["classes"])
    assert data.widths == {"text": 3, "image": 2}
    assert (data.train.ids, data.valid.ids, data.test.ids) == (["a", "b", "c"], ["d"], ["e", "f"])
    assert data.train.target.tolist() == [0, 1, 0]
    assert data.train.seed == 5
    batch = data.test.batch([1, 0])
    assert batch["ids"] == ["f", "e"]
    text, mask = batch["inputs"]["text"]
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    np.testing.assert_array_equal(text[1], TEXTS[4])
    np.testing.assert_array_equal(text[0, :2], TEXTS[5])
    np.testing.assert_array_equal(batch["inputs"]["image"].values[0], IMAGES[8])


def test_views_of_a_training_sample_follow_one_another(folder):
    train = open_features(folder).task_data(seed=0).train
    np.testing.assert_array_equal(train.batch([1])["inputs"]["image"].values[0], IMAGES[2])
    seen = {float(train.batch([1], e)["inputs"]["image"].values[0, 0, 0]) for e in range(20)}
    assert seen == {float(IMAGES[2][0, 0]), float(IMAGES[3][0, 0])}


def test_values_are_mapped_and_the_file_cannot_be_changed_through_them(folder):
    before = (folder / "text.values.bin").read_bytes()
    values = open_features(folder).sequences["text"].values
    assert values.dtype == torch.float16
    values.zero_()
    assert (folder / "text.values.bin").read_bytes() == before


def test_size_is_two_bytes_per_feature(folder):
    assert (folder / "text.values.bin").stat().st_size == 12 * 3 * 2
    assert (folder / "image.values.bin").stat().st_size == 18 * 2 * 2
    assert not (folder / "progress.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": "other"}, "made with other records"),
        ({"split": "other"}, "made with another split"),
        ({"text_model": "other"}, "made with another text model"),
        ({"image_model": "other"}, "made with another image model"),
        ({"transform": {**KEY["transform"], "size": 64}}, "made with size 32 instead of 64"),
        ({"transform": {"size": 32}}, "made with another transform"),
    ],
)
def test_stale_store_is_refused_by_name(folder, change, message):
    with pytest.raises(UserError, match=message):
        open_features(folder, change)


def test_everything_that_differs_is_named(folder):
    with pytest.raises(UserError, match="other records, another text model"):
        open_features(folder, {"records": "x", "text_model": "y", "split": "s"})


def test_other_format_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(UserError, match=r"format 1.*found format 0"):
        open_features(folder)


def test_unfinished_store_is_refused(tmp_path):
    FeatureWriter(tmp_path, KEY, WIDTHS).commit({"text": TEXTS}, samples=1, skipped={}, records="r")
    with pytest.raises(UserError, match="unfinished extraction"):
        open_features(tmp_path)


def test_folder_without_features_is_refused(tmp_path):
    with pytest.raises(UserError, match="found none"):
        open_features(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["text.values.bin", "image.lengths.bin", "samples.json"])
@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_damaged_file_is_an_error(folder, name, damage):
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "cut":
        (folder / name).write_bytes(content[:-4])
    with pytest.raises(DataError, match="damaged"):
        open_features(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": 1, "key": 3}'])
def test_damaged_manifest_is_an_error(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises((DataError, UserError), match=r"manifest|damaged|format"):
        open_features(folder)


def test_two_processes_write_no_store_at_once(tmp_path):
    (tmp_path / "store").mkdir()
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    with holding(tmp_path / "store", "an extraction"), pool:
        second = pool.submit(FeatureWriter, tmp_path / "store", KEY, WIDTHS)
        with pytest.raises(UserError, match=r"an extraction, process .* still writes there"):
            second.result()
    FeatureWriter(tmp_path / "store", KEY, WIDTHS)


def test_bytes_of_a_torn_shard_are_dropped(folder, tmp_path):
    torn = tmp_path / "torn"
    key = {name: part for name, part in KEY.items() if name != "records"}
    writer = FeatureWriter(torn, key, WIDTHS)
    writer.commit(
        {"text": TEXTS[:2], "image": IMAGES[:4]}, samples=2, skipped={"z": "why"}, records="r"
    )
    for name in ("text.values.bin", "text.lengths.bin"):
        with open(torn / name, "ab") as stream:
            stream.write(b"torn")
    (torn / ".tmp-1-progress.json").write_text("{")
    del writer
    again = FeatureWriter(torn, key, WIDTHS)
    assert (again.done, again.skipped, again.records) == (2, {"z": "why"}, "r")
    again.commit({"text": TEXTS[2:], "image": IMAGES[4:]}, samples=4, skipped={}, records="r")
    again.finish("r", SAMPLES, VIEWS, FACTS)
    for file in folder.glob("*.bin"):
        assert (torn / file.name).read_bytes() == file.read_bytes()
    assert sorted(p.name for p in torn.iterdir()) == sorted(p.name for p in folder.iterdir())
    assert "1 bad samples were left out" in open_features(torn).task_data(seed=0).notes[-1]


def test_unfinished_store_of_another_key_is_refused(tmp_path):
    FeatureWriter(tmp_path, KEY, WIDTHS)
    with pytest.raises(UserError, match="another image model"):
        FeatureWriter(tmp_path, {**KEY, "image_model": "other"}, WIDTHS)


def test_committed_bytes_that_are_gone_are_an_error(tmp_path):
    FeatureWriter(tmp_path, KEY, WIDTHS).commit({"text": TEXTS}, samples=6, skipped={}, records="r")
    (tmp_path / "text.values.bin").write_bytes(b"")
    with pytest.raises(DataError, match="too short"):
        FeatureWriter(tmp_path, KEY, WIDTHS)


def test_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        FeatureWriter(tmp_path, KEY, WIDTHS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="write features"):
        FeatureWriter(tmp_path / "file" / "store", KEY, WIDTHS)


def test_digest_follows_key_and_samples(folder, tmp_path):
    digest = open_features(folder).task_data(seed=0).digest
    assert write(tmp_path / "same").task_data(seed=0).digest == digest
    other = write(tmp_path / "other", {**KEY, "records": "other"})
    assert other.task_data(seed=0).digest != digest


def test_store_is_checked_against_its_samples_without_reading_images(tmp_path):
    simulate_food101(tmp_path / "food", train=20, test=10)
    food = read_food101(tmp_path / "food")
    write(tmp_path / "store", {**KEY, "records": food.digest})
    for record in food.splits["test"]:
        file = food.image_file(record)
        file.write_bytes(b"x" * file.stat().st_size)
    assert load_food101(tmp_path / "food", tmp_path / "store", seed=0).classes == 2
    food.image_file(food.splits["test"][0]).unlink()
    with pytest.raises(UserError, match="other records"):
        load_food101(tmp_path / "food", tmp_path / "store", seed=0)
    assert load_food101(None, tmp_path / "store", seed=0).classes == 2


def test_full_disk_keeps_what_was_committed(tmp_path):
    writer = FeatureWriter(tmp_path, KEY, WIDTHS)
    writer.commit({"text": TEXTS[:2], "image": IMAGES[:4]}, samples=2, skipped={}, records="r")
    large = [np.zeros((20_000, 3), np.float16)]
    with file_size_limit(50_000), pytest.raises(UserError, match=r"Free space.*done is kept"):
        writer.commit({"text": large, "image": IMAGES[4:5]}, samples=1, skipped={}, records="r")
    again = FeatureWriter(tmp_path, KEY, WIDTHS)
    assert again.done == 2
    assert (tmp_path / "text.values.bin").stat().st_size == 6 * 3 * 2
