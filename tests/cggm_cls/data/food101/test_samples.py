import csv
import json
import os

import pytest

from cggm.errors import DataError, UserError
from cggm_cls.data.food101.samples import read_food101
from cggm_cls.data.food101.simulation import CLASSES, simulate_food101

ROW = {"id": "a_0", "label": "a", "text": "An apple", "img": "images/a_0.jpg"}


def rows(label: str, split: str, count: int) -> list[dict[str, str]]:
    names = [f"{label}_{split}_{number}" for number in range(count)]
    return [{**ROW, "id": n, "label": label, "img": f"images/{n}.jpg"} for n in names]


def write_jsonl(root, **splits):
    (root / "images").mkdir(exist_ok=True)
    for split, records in splits.items():
        (root / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        for record in records:
            file = root / str(record.get("img"))
            if file.parent == root / "images":
                file.write_bytes(b"image of " + str(record.get("id")).encode())
    return root


@pytest.fixture
def root(tmp_path):
    train = rows("a", "train", 20) + rows("b", "train", 20)
    return write_jsonl(tmp_path, train=train, test=rows("a", "test", 3) + rows("b", "test", 2))


@pytest.mark.parametrize("variant", ["json", "jsonl", "csv"])
def test_variants_list_the_same_samples(tmp_path, variant):
    for name in ("json", variant):
        simulate_food101(tmp_path / name, train=40, test=20, variant=name)
    expected, found = read_food101(tmp_path / "json"), read_food101(tmp_path / variant)
    assert found.splits == expected.splits
    assert found.digest == expected.digest
    assert found.classes == tuple(sorted(CLASSES))
    assert found.simulated
    assert not found.missing
    assert f"{variant} variant" in found.notes[0]


def test_csv_with_a_header_in_any_order(tmp_path):
    (tmp_path / "texts").mkdir()
    for split in ("train", "test"):
        with open(tmp_path / "texts" / f"{split}_titles.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["label", "Image_path", "text"])
            writer.writerows([["a", f"a_{split}_{n}.jpg", "one,\ntwo"] for n in range(4)])
    record = read_food101(tmp_path).splits["test"][1]
    assert record.image == "images/test/a/a_test_1.jpg"
    assert (record.id, record.text, record.label) == ("a_test_1", "one,\ntwo", "a")


def test_validation_split_is_stratified_and_depends_on_the_seed(root):
    first, again, other = (read_food101(root, seed=seed) for seed in (1, 1, 2))
    labels = [record.label for record in first.splits["valid"]]
    assert sorted(labels) == ["a", "a", "b", "b"]  # the tenth part of 40
    assert len(first.splits["train"]) == 36
    assert not set(first.splits["train"]) & set(first.splits["valid"])
    assert first.splits == again.splits
    assert first.splits["valid"] != other.splits["valid"]
    assert first.digest == other.digest


def test_validation_split_of_a_given_size(root):
    assert len(read_food101(root, validation=2).splits["valid"]) == 2


def test_listed_validation_split_is_used(root):
    write_jsonl(root, dev=rows("b", "dev", 3))
    found = read_food101(root)
    assert [record.id for record in found.splits["valid"]] == ["b_dev_0", "b_dev_1", "b_dev_2"]
    assert len(found.splits["train"]) == 40


def test_class_with_one_training_sample_cannot_be_split(root):
    write_jsonl(root, train=rows("a", "train", 20) + rows("b", "train", 1))
    with pytest.raises(DataError, match="at least two samples of each class"):
        read_food101(root)


def test_unknown_class_of_a_test_sample_is_an_error(root):
    write_jsonl(root, test=rows("a", "test", 2) + rows("kale", "test", 1))
    with pytest.raises(DataError, match=r"kale_test_0.*one of the 2 classes.*'kale'"):
        read_food101(root)


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.jpg", "images/../../secret.jpg"])
def test_path_out_of_the_root_is_refused(root, path):
    write_jsonl(root, test=[*rows("a", "test", 1), {**ROW, "id": "thief", "img": path}])
    with pytest.raises(DataError, match=r"thief.*leaves it"):
        read_food101(root)


def test_symlink_out_of_the_root_is_refused(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    outside.write_bytes(b"secret")
    os.symlink(outside, root / "link.jpg")
    write_jsonl(root, test=[{**ROW, "id": "thief", "img": "link.jpg"}])
    with pytest.raises(DataError, match=r"thief.*leaves it"):
        read_food101(root)


def test_root_that_is_a_symlink_is_read(root, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "food"
    os.symlink(root, link)
    assert read_food101(link).digest == read_food101(root).digest


def test_missing_images_are_listed(root):
    (root / "images" / "a_test_1.jpg").unlink()
    (root / "images" / "b_train_3.jpg").unlink()
    found = read_food101(root)
    assert found.missing == ("b_train_3", "a_test_1")
    assert found.notes[-1] == "2 samples have no image file, the first of them b_train_3."


def test_image_in_two_splits_is_an_error(root):
    write_jsonl(root, test=[{**ROW, "id": "leak", "img": "images/../images/a_train_0.jpg"}])
    with pytest.raises(DataError, match=r"leak.*in train and in test"):
        read_food101(root)


def test_repeated_identifier_is_an_error(root):
    write_jsonl(root, test=[*rows("a", "test", 2), {**ROW, "id": "a_test_0"}])
    with pytest.raises(DataError, match=r"a_test_0.*every sample once"):
        read_food101(root)


@pytest.mark.parametrize("change", ["text", "label", "image size"])
def test_digest_follows_the_content(root, change):
    before = read_food101(root).digest
    train = rows("a", "train", 20) + rows("b", "train", 20)
    if change == "image size":
        (root / train[0]["img"]).write_bytes(b"")
    else:
        write_jsonl(root, train=[{**train[0], change: "b"}, *train[1:]])
    assert read_food101(root).digest != before


def test_empty_text_and_odd_characters_are_kept_or_replaced(root):
    texts = ["", None, "\u2028 line", "half \ud83d"]
    write_jsonl(
        root, test=[{**r, "text": t} for r, t in zip(rows("a", "t", 4), texts, strict=True)]
    )
    found = [record.text for record in read_food101(root).splits["test"]]
    assert found == ["", "", "\u2028 line", "half ?"]


def test_note_tells_how_often_the_text_names_the_class(root):
    train = [{**r, "text": "a nice cake"} for r in rows("cake", "train", 3)]
    write_jsonl(root, train=train + rows("pie", "train", 9), test=rows("pie", "test", 1))
    assert "in 25% of the training samples" in read_food101(root).notes[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.json", "{}", "a dict where a list was expected"),
        ("train.json", "[" * 100_000, "malformed"),
        ("train.json", '[{"id": 1, "label": "a"}]', "record 1.*text_tokens"),
        ("train.json", '[{"id":1,"label":"a","img_path":"x","text_tokens":[1]}]', "list of words"),
        ("test.jsonl", "{oops", "record 1.*JSON object"),
        ("test.jsonl", '{"id": "x", "label": "a"}', "keys id, label, text, img"),
        ("test.jsonl", json.dumps({**ROW, "img": "a\0b"}), "`img` to be a word"),
        ("test.jsonl", json.dumps({**ROW, "text": 3}), "`text` to be text"),
        ("test.jsonl", "", "Expected samples, but found none"),
        ("test.jsonl", "\xff", "malformed"),
    ],
)
def test_malformed_list_is_an_error(root, name, content, message):
    (root / name).write_bytes(content.encode("latin1"))
    with pytest.raises(DataError, match=message):
        read_food101(root)


def test_csv_with_a_wrong_number_of_columns_is_an_error(tmp_path):
    simulate_food101(tmp_path / "food", train=20, test=10, variant="csv")
    with open(tmp_path / "food" / "texts" / "test_titles.csv", "a") as stream:
        stream.write("only,two\n")
    with pytest.raises(DataError, match=r"record 11.*columns"):
        read_food101(tmp_path / "food")


@pytest.mark.parametrize("lost", ["train", "test"])
def test_missing_list_is_named(root, lost):
    (root / f"{lost}.jsonl").unlink()
    with pytest.raises(DataError, match=f"{lost}.jsonl.*list of the {lost} split"):
        read_food101(root)


def test_other_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="found none"):
        read_food101(tmp_path / "nowhere")


def test_simulation_is_reproducible_and_never_overwrites(tmp_path):
    for name in ("one", "two", "one"):
        simulate_food101(tmp_path / name, train=20, test=10)
    assert read_food101(tmp_path / "one").digest == read_food101(tmp_path / "two").digest
    with pytest.raises(UserError, match="same settings"):
        simulate_food101(tmp_path / "one", train=20, test=10, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
