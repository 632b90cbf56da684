import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cggm.errors import DataError, UserError
from cggm_cls.data.food101.backbones import ImageBackbone, TextBackbone
from cggm_cls.data.food101.extraction import ExtractionOptions, extract_features
from cggm_cls.data.food101.samples import load_food101, read_food101
from cggm_cls.data.food101.simulation import simulate_backbones, simulate_features, simulate_food101

OPTIONS = ExtractionOptions(views=2, batch_size=4, shard_size=8, progress=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return simulate_backbones(tmp_path_factory.mktemp("models") / "demo")


@pytest.fixture(scope="module")
def text(folders):
    return TextBackbone(folders[0])


@pytest.fixture(scope="module")
def image(folders):
    return ImageBackbone(folders[1])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "food"
    simulate_food101(root, train=40, test=20)
    return root


@pytest.fixture(scope="module")
def whole(pristine, text, image, tmp_path_factory):
    """An uninterrupted extraction."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    return extract_features(read_food101(pristine), text, image, folder, OPTIONS)


@pytest.fixture
def food(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "food")
    return read_food101(tmp_path / "food")


def pixels(count: int, side: int = 32) -> list[np.ndarray]:
    return [*np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)]


def spoil(food, split: str, position: int):
    """Replace an image by as many bytes that are none."""
    record = food.splits[split][position]
    file = food.image_file(record)
    content = file.read_bytes()
    file.write_bytes(bytes(len(content)))
    return record.id, file, content


def assert_same_store(folder, other):
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name != "manifest.json":
            assert (folder / name).read_bytes() == (other / name).read_bytes()
    one, two = (json.loads((f / "manifest.json").read_text()) for f in (folder, other))
    assert {**one, "created": None} == {**two, "created": None}


def test_text_features_are_those_of_the_text_alone(text):
    texts = ["add applea", "", "stir " * 80]
    together = text.encode(texts)
    assert [len(states) for states in together] == [4, 2, 50]
    for states, one in zip(together, texts, strict=True):
        torch.testing.assert_close(states, text.encode([one])[0], atol=1e-5, rtol=0)


def test_image_is_normalized_as_by_its_processor(folders, image):
    from transformers import ViTImageProcessor, ViTModel

    full = ImageBackbone(folders[1], patches="full")
    processed = ViTImageProcessor.from_pretrained(folders[1])(
        [Image.fromarray(one) for one in pixels(2)], return_tensors="pt"
    )
    model = ViTModel.from_pretrained(folders[1], add_pooling_layer=False)
    with torch.no_grad():
        expected = model(**processed).last_hidden_state
    found = torch.stack(full.encode(pixels(2)))
    assert found.shape == (2, 17, 32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_pooled_patches_are_means_of_four_neighbors(folders, image):
    [full] = ImageBackbone(folders[1], patches="full").encode(pixels(1))
    [pooled] = image.encode(pixels(1))
    grid = full[1:].reshape(4, 4, 32)
    assert pooled.shape == (5, 32)
    torch.testing.assert_close(pooled[0], full[0])
    torch.testing.assert_close(pooled[2], grid[:2, 2:].mean((0, 1)))


def test_models_are_frozen_and_deterministic(text, image):
    for backbone, items in ((text, ["add salt"]), (image, pixels(1))):
        first, second = backbone.encode(items)[0], backbone.encode(items)[0]
        assert torch.equal(first, second)
        assert not first.requires_grad


def test_a_name_that_is_no_folder_is_refused():
    with pytest.raises(UserError, match=r"bert-base-uncased.*two local folders"):
        TextBackbone(Path("bert-base-uncased"))


def test_models_in_each_others_place_are_refused(folders):
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        ImageBackbone(folders[0])
    with pytest.raises(UserError, match=r"tokenizer\.json or vocab\.txt"):
        TextBackbone(folders[1])


@pytest.fixture
def bert(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "bert")
    return tmp_path / "bert"


def rewrite(bert, change):
    weights = load_file(bert / "model.safetensors")
    change(weights)
    save_file(weights, bert / "model.safetensors", {"format": "pt"})


def test_pickled_weights_are_refused(bert):
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        TextBackbone(bert)


def test_model_of_another_kind_is_refused(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(UserError, match="found 'gpt2'"):
        TextBackbone(bert)


def test_missing_weights_are_not_replaced_by_random_ones(bert):
    rewrite(bert, lambda weights: weights.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(UserError, match=r"1 are missing.*output\.dense\.weight"):
        TextBackbone(bert)


def test_torn_weights_are_refused(bert):
    (bert / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="Expected weights of a BertModel"):
        TextBackbone(bert)


def test_digest_follows_the_weights(bert, text):
    assert TextBackbone(bert).digest == text.digest
    rewrite(bert, lambda weights: weights["encoder.layer.1.output.dense.weight"].mul_(2))
    assert TextBackbone(bert).digest != text.digest


def test_more_tokens_than_positions_are_refused(folders):
    with pytest.raises(UserError, match="from 2 to the 64 positions"):
        TextBackbone(folders[0], max_tokens=65)


def test_store_holds_the_features_of_the_backbones(food, text, image, whole):
    record = food.splits["test"][3]
    with Image.open(food.image_file(record)) as opened:
        resized = np.asarray(opened.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    batch = whole.task_data(seed=0).test.batch([3])
    assert batch["ids"] == [record.id]
    assert batch["target"].item() == food.classes.index(record.label)
    for name, [states] in {
        "text": text.encode([record.text]),
        "image": image.encode([resized]),
    }.items():
        assert whole.sequences[name].values.dtype == torch.float16
        torch.testing.assert_close(batch["inputs"][name].values[0], states, atol=2e-3, rtol=1e-3)


def test_manifest_tells_where_the_features_come_from(whole, text, image, food):
    manifest = whole.manifest
    assert manifest["simulated"]
    assert manifest["key"]["records"] == food.digest
    assert manifest["key"]["text_model"] == text.digest
    assert manifest["key"]["transform"] == {
        "max_tokens": 50,
        "size": 32,
        "resample": 2,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "patches": "pooled",
        "views": 2,
        "seed": 0,
    }
    assert manifest["modalities"]["image"]["shape"] == [(30 * 2 + 10 + 20) * 5, 32]
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_training_data_comes_from_the_store_alone(whole):
    data = load_food101(None, whole.folder, seed=3)
    assert (len(data.train), len(data.valid), len(data.test)) == (30, 10, 20)
    assert data.train.views == {"text": 1, "image": 2}
    assert data.classes == 10
    assert data.simulated


def _extract(root, folders, output):
    torch.set_num_threads(1)
    backbones = TextBackbone(folders[0]), ImageBackbone(folders[1])
    extract_features(read_food101(root), *backbones, output, OPTIONS)


def test_killed_extraction_goes_on_where_it_stopped(food, folders, text, image, whole, tmp_path):
    output = tmp_path / "store"
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_extract, args=(food.root, folders, output))
    process.start()
    deadline = time.monotonic() + 60
    while not (done := committed(output)) and time.monotonic() < deadline:
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 8 <= done < 60
    spoil(food, "train", 0)  # a finished shard is not read again
    extract_features(food, text, image, output, OPTIONS)
    assert_same_store(output, whole.folder)


def committed(output) -> int:
    try:
        return json.loads((output / "progress.json").read_text())["done"]
    except FileNotFoundError:
        return 0


def test_bad_image_ends_the_extraction_which_then_goes_on(food, text, image, whole, tmp_path):
    name, file, content = spoil(food, "test", 12)
    with pytest.raises(DataError, match=f"{name}.*{file.name}"):
        extract_features(food, text, image, tmp_path / "store", OPTIONS)
    assert committed(tmp_path / "store") == 48
    file.write_bytes(content)
    spoil(food, "train", 5)  # finished, hence not read again
    extract_features(food, text, image, tmp_path / "store", OPTIONS)
    assert_same_store(tmp_path / "store", whole.folder)


def test_mended_image_of_another_size_loses_no_finished_shard(food, text, image, tmp_path):
    _, file, content = spoil(food, "test", 12)
    with pytest.raises(DataError, match=file.name):
        extract_features(food, text, image, tmp_path / "store", OPTIONS)
    with Image.open(BytesIO(content)) as opened:
        opened.save(file, quality=30)
    spoil(food, "train", 0)
    mended = read_food101(food.root)
    assert mended.digest != food.digest
    store = extract_features(mended, text, image, tmp_path / "store", OPTIONS)
    assert store.manifest["key"]["records"] == mended.digest


def test_change_of_a_finished_sample_is_refused(food, text, image, tmp_path):
    _, file, _ = spoil(food, "test", 12)
    with pytest.raises(DataError, match=file.name):
        extract_features(food, text, image, tmp_path / "store", OPTIONS)
    food.image_file(food.splits["train"][0]).write_bytes(b"shorter")
    with pytest.raises(UserError, match="made with other records"):
        extract_features(read_food101(food.root), text, image, tmp_path / "store", OPTIONS)


def test_bad_images_can_be_left_out(food, text, image, whole, tmp_path):
    bad = [spoil(food, "train", 1)[0], spoil(food, "test", 2)[0]]
    options = ExtractionOptions(views=2, batch_size=4, shard_size=1, skip_bad=True, progress=False)
    store = extract_features(food, text, image, tmp_path / "store", options)
    assert list(store.manifest["skipped"]) == bad
    data = store.task_data(seed=0)
    assert (len(data.train), len(data.test)) == (29, 19)
    assert not set(bad) & {*data.train.ids, *data.test.ids}
    assert data.notes[-1] == "2 bad samples were left out of the features."
    expected = whole.task_data(seed=0).test.batch([5])["inputs"]["image"].values
    torch.testing.assert_close(
        data.test.batch([4])["inputs"]["image"].values, expected, atol=2e-3, rtol=1e-3
    )


def test_missing_image_is_named_before_anything_is_computed(food, text, image, tmp_path):
    food.image_file(food.splits["test"][7]).unlink()
    with pytest.raises(DataError, match=f"{food.splits['test'][7].id}.*1 have none"):
        extract_features(read_food101(food.root), text, image, tmp_path / "store", OPTIONS)
    assert not (tmp_path / "store").exists()


def test_split_without_a_good_image_is_an_error(food, text, image, tmp_path):
    for position in range(10):
        spoil(food, "valid", position)
    options = ExtractionOptions(batch_size=8, skip_bad=True, progress=False)
    with pytest.raises(DataError, match="valid split, but all of them are bad"):
        extract_features(food, text, image, tmp_path / "store", options)


def test_features_beyond_float16_are_an_error(food, bert, image, tmp_path):
    rewrite(bert, lambda weights: weights["encoder.layer.1.output.LayerNorm.weight"].mul_(1e6))
    with pytest.raises(DataError, match="within float16"):
        extract_features(food, TextBackbone(bert), image, tmp_path / "store", OPTIONS)


def test_finished_store_is_opened_as_it_is_or_refused(food, text, image, folders, whole):
    spoil(food, "train", 0)
    again = extract_features(food, text, image, whole.folder, OPTIONS)
    assert again.manifest == whole.manifest
    other = {
        "views 2 instead of 1": (food, image, ExtractionOptions()),
        "patches pooled instead of full": (
            food,
            ImageBackbone(folders[1], patches="full"),
            OPTIONS,
        ),
        "another split": (read_food101(food.root, seed=1), image, OPTIONS),
    }
    for message, (data, backbone, options) in other.items():
        with pytest.raises(UserError, match=message):
            extract_features(data, text, backbone, whole.folder, options)


def test_nothing_is_fetched(food, folders, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    backbones = TextBackbone(folders[0]), ImageBackbone(folders[1])
    options = ExtractionOptions(shard_size=64, progress=False)
    assert extract_features(food, *backbones, tmp_path / "store", options).manifest["simulated"]


@pytest.mark.parametrize("field", ["views", "batch_size", "shard_size", "workers"])
def test_options_out_of_range_are_refused(field):
    with pytest.raises(UserError, match=f"{field} of at least 1"):
        ExtractionOptions(**{field: 0})


def test_demo_features_are_made_once_and_tell_text_from_image(tmp_path):
    from sklearn.linear_model import LogisticRegression

    folder = simulate_features(tmp_path / "demo")
    created = (folder / "manifest.json").stat().st_mtime_ns
    assert simulate_features(tmp_path / "demo") == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == created
    data = load_food101(None, folder, seed=0)
    accuracy = {}
    for name in data.widths:
        train, test = (mean_step(split, name) for split in (data.train, data.test))
        model = LogisticRegression(C=100, max_iter=2000).fit(train, data.train.target)
        accuracy[name] = model.score(test, data.test.target)
    assert accuracy["text"] > 0.65
    assert 0.2 < accuracy["image"] < 0.5


def mean_step(split, name):
    values, mask = split.batch(range(len(split)))["inputs"][name]
    return (values.sum(1) / mask.sum(1, keepdim=True)).numpy()
