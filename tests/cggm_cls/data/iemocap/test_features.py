import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from cggm.errors import DataError, UserError
from cggm_cls.data.iemocap.features import FILES, STATISTICS, WIDTHS, load_iemocap
from cggm_cls.data.iemocap.folds import fold_numbers
from cggm_cls.data.iemocap.simulation import SPEAKERS, simulate_iemocap

AUDIO, TEXT, VISION = FILES["audio"], FILES["text"], FILES["vision"]
FIRST = "Ses02F_impro01_F000"  # of the training split of fold 1


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("iemocap") / "features"
    simulate_iemocap(folder, per_speaker=2)
    return folder


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "features"))


def replace(file: Path, name: str, value, **options) -> None:
    with h5py.File(file, "a") as root:
        del root[name]
        if isinstance(value, np.ndarray):
            root.create_dataset(name, data=value, **options)
        elif value is not None:
            root[name] = value


def stored(file: Path, name: str) -> np.ndarray:
    with h5py.File(file) as root:
        return root[name][()]


def sequence(dataset, modality: str, name: str = FIRST) -> np.ndarray:
    loaded = dataset.batch([dataset.ids.index(name)])["inputs"][modality]
    return loaded.values[0][loaded.mask[0]].numpy()


def refused(folder: Path, match: str, fold: int = 1) -> None:
    with pytest.raises(DataError, match=match):
        load_iemocap(folder, fold)


def test_the_splits_are_those_of_the_files(pristine):
    data = load_iemocap(pristine, 3)
    for split, part in {"train": "trn", "valid": "val", "test": "tst"}.items():
        names = np.load(pristine / f"target/3/{part}_int2name.npy")
        labels = np.load(pristine / f"target/3/{part}_label.npy")
        dataset = getattr(data, split)
        assert [name.encode() for name in dataset.ids] == names[:, 0].tolist()
        assert labels[np.arange(len(labels)), dataset.target].tolist() == [1.0] * len(labels)
        assert dataset.target.dtype == torch.int64
    assert data.classes == 4
    assert data.widths == {"text": 1024, "audio": 130, "vision": 342}
    assert list(data.widths) == ["text", "audio", "vision"]


def test_audio_is_normalized_by_the_statistics_of_the_fold(pristine):
    for fold in (1, 5):
        train = load_iemocap(pristine, fold).train
        values = train.inputs["audio"].values.double()
        torch.testing.assert_close(values.mean(0), torch.zeros(130).double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            values.std(0, correction=0), torch.ones(130).double(), atol=1e-4, rtol=0
        )
    mean, std = (stored(pristine / STATISTICS, f"1/{name}") for name in ("mean", "std"))
    expected = (stored(pristine / AUDIO, FIRST) - mean) / std
    found = sequence(load_iemocap(pristine, 1).train, "audio")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_deviation_of_zero_counts_as_one(folder):
    deviation = stored(folder / STATISTICS, "1/std")
    deviation[7] = 0
    replace(folder / STATISTICS, "1/std", deviation)
    found = sequence(load_iemocap(folder, 1).train, "audio")
    expected = stored(folder / AUDIO, FIRST)[:, 7] - stored(folder / STATISTICS, "1/mean")[7]
    np.testing.assert_allclose(found[:, 7], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["front", "back", "between"])
def test_zero_rows_of_text_are_padding_wherever_they_are(folder, side):
    words = np.random.default_rng(0).standard_normal((5, 1024)).astype(np.float32)
    padded = np.zeros((22, 1024), np.float32)
    rows = {"front": range(17, 22), "back": range(5), "between": range(0, 20, 4)}[side]
    padded[list(rows)] = words
    replace(folder / TEXT, FIRST, padded)
    np.testing.assert_array_equal(sequence(load_iemocap(folder, 1).train, "text"), words)


def test_an_utterance_without_a_face_has_no_vision_step_and_is_counted(folder):
    replace(folder / VISION, FIRST, np.zeros((50, 342), np.float32))
    data = load_iemocap(folder, 1)
    assert len(sequence(data.train, "vision")) == 0
    assert "1 utterances have no step of vision." in data.notes


def test_zero_rows_of_audio_are_steps(folder):
    raw = stored(folder / AUDIO, FIRST)
    raw[:4] = 0
    replace(folder / AUDIO, FIRST, raw)
    assert len(sequence(load_iemocap(folder, 1).train, "audio")) == len(raw)


def test_long_audio_is_cut_to_its_beginning_and_counted(folder):
    raw = np.random.default_rng(0).standard_normal((500, 130))
    assert load_iemocap(folder, 1, audio_steps=80).notes == ()
    replace(folder / AUDIO, FIRST, raw)
    data = load_iemocap(folder, 1)
    mean, std = (stored(folder / STATISTICS, f"1/{name}") for name in ("mean", "std"))
    found = sequence(data.train, "audio")
    np.testing.assert_allclose(found, (raw[:350] - mean) / std, rtol=1e-3, atol=1e-4)
    assert data.notes == ("1 utterances had their audio cut to 350 steps.",)


def test_values_that_are_not_finite_become_zero_and_are_counted(folder):
    raw, text = stored(folder / AUDIO, FIRST), stored(folder / TEXT, FIRST)
    raw[2, :3] = [np.nan, np.inf, -np.inf]
    text[0, 5] = np.nan
    replace(folder / AUDIO, FIRST, raw)
    replace(folder / TEXT, FIRST, text)
    data = load_iemocap(folder, 1)
    assert sequence(data.train, "audio")[2, :3].tolist() == [0, 0, 0]
    assert sequence(data.train, "text")[0, 5] == 0
    assert len(sequence(data.train, "text")) == len(text[text.any(1)])
    assert data.notes == (
        "1 values of text were not finite and became 0.",
        "3 values of audio were not finite and became 0.",
    )


def test_double_values_beyond_single_precision_are_counted_too(folder):
    raw = stored(folder / AUDIO, FIRST).astype(np.float64)
    raw[0, 0] = 1e300
    replace(folder / AUDIO, FIRST, raw)
    assert load_iemocap(folder, 1).notes == ("1 values of audio were not finite and became 0.",)


def test_the_digest_follows_values_labels_and_fold(folder):
    digests = [load_iemocap(folder, fold).digest for fold in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]
    text = stored(folder / TEXT, FIRST)
    text[0, 0] += 1
    replace(folder / TEXT, FIRST, text)
    assert load_iemocap(folder, 1).digest not in digests
    labels = np.load(folder / "target/2/val_label.npy")
    np.save(folder / "target/2/val_label.npy", np.roll(labels, 1, axis=1))
    assert load_iemocap(folder, 2).digest not in digests


def test_only_a_marked_folder_is_simulated(folder):
    assert load_iemocap(folder, 1).simulated
    (folder / "simulated.json").unlink()
    assert not load_iemocap(folder, 1).simulated


def test_folds_are_listed_in_the_order_of_numbers_and_an_unknown_one_is_refused(folder):
    (folder / "target/notes").mkdir()
    assert fold_numbers(folder) == list(range(1, 11))
    shutil.rmtree(folder / "target/4")
    refused(folder, "--fold to be one of 1, 2, 3, 5, 6, 7, 8, 9, 10, but got 4", fold=4)


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_folds_is_refused(tmp_path, made):
    if made:
        (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match=r"target/1 to target/10.*A, V, L and target"):
        fold_numbers(tmp_path)


@pytest.mark.parametrize("inside", [False, True])
def test_the_pickle_of_mult_is_refused_with_the_reason(tmp_path, inside):
    file = tmp_path / "iemocap_data.pkl"
    file.write_bytes(b"\x80\x04}.")
    refused(tmp_path if inside else file, "iemocap_data.pkl.*four binary problems")


@pytest.mark.parametrize("file", [AUDIO, TEXT, VISION, STATISTICS, "target/1/val_label.npy"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    refused(folder, file.rpartition("/")[2])


@pytest.mark.parametrize("file", [AUDIO, STATISTICS, "target/1/trn_int2name.npy"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.9])
def test_a_truncated_file_is_named(folder, file, share):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(share * len(content))])
    refused(folder, file.rpartition("/")[2])


def test_utterances_without_features_are_counted_and_named(folder):
    for number in (0, 1):
        replace(folder / VISION, f"Ses02F_impro01_F{number:03}", None)
    refused(folder, r"denseface.h5: .* of 20 utterances, but 2 are missing, such as Ses02F")


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((10, 129), np.float32),
        np.zeros(130, np.float32),
        np.zeros((1, 10, 130), np.float32),
        np.zeros((10, 130), np.int64),
        np.zeros((10, 130), np.complex64),
        np.zeros((10, 130), [("a", np.float32)]),
        np.zeros((10, 130), "S4"),
    ],
    ids=lambda value: f"{value.dtype.kind}{value.shape}",
)
def test_features_of_another_shape_or_type_are_refused(folder, value):
    replace(folder / AUDIO, FIRST, value)
    refused(folder, rf"{FIRST}, .*comparE.h5: Expected floats of shape \(T, 130\)")


def test_objects_and_groups_and_empty_arrays_are_refused(folder):
    with h5py.File(folder / AUDIO, "a") as root:
        del root[FIRST]
        root.create_dataset(FIRST, (10, 130), dtype=h5py.string_dtype())
    refused(folder, "Expected floats")
    replace(folder / AUDIO, FIRST, h5py.Empty("f4"))
    refused(folder, "Expected floats")
    replace(folder / AUDIO, FIRST, None)
    with h5py.File(folder / AUDIO, "a") as root:
        root.create_group(FIRST)
    refused(folder, "found a group")


@pytest.mark.parametrize("kind", ["external", "soft", "virtual", "raw"])
def test_data_outside_the_file_are_refused_before_they_are_read(folder, tmp_path, kind):
    outside = tmp_path / "outside.h5"
    with h5py.File(outside, "w") as root:
        root["x"] = np.zeros((10, 130), np.float32)
    replace(folder / AUDIO, FIRST, None)
    with h5py.File(folder / AUDIO, "a") as root:
        if kind == "external":
            root[FIRST] = h5py.ExternalLink(str(outside), "x")
        elif kind == "soft":
            root[FIRST] = h5py.SoftLink("/Ses01F_impro01_F000")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((10, 130), np.float32)
            layout[:] = h5py.VirtualSource(outside, "x", (10, 130))
            root.create_virtual_dataset(FIRST, layout)
        else:
            root.create_dataset(FIRST, (10, 130), np.float32, external=[(str(outside), 0, 5200)])
    refused(folder, "Expected a plain array, but found a (link|view)")


def test_links_inside_the_statistics_are_refused_as_well(folder, tmp_path):
    shutil.copy(folder / STATISTICS, tmp_path / "outside.h5")
    replace(folder / STATISTICS, "1", h5py.ExternalLink(str(tmp_path / "outside.h5"), "1"))
    refused(folder, "1, .*comparE_mean_std.h5: .*found a link")


def test_compressed_features_are_refused_with_the_command_that_unpacks_them(folder):
    replace(folder / AUDIO, FIRST, np.zeros((10, 130), np.float32), compression="gzip")
    refused(folder, "compressed.*h5repack -f NONE")


@pytest.mark.parametrize(("shape", "chunks"), [((10**9, 130), (1, 130)), ((10, 130), (10**6, 130))])
def test_a_small_file_that_declares_a_giant_is_refused(folder, shape, chunks):
    with h5py.File(folder / AUDIO, "a") as root:
        del root[FIRST]
        root.create_dataset(FIRST, shape, np.float32, maxshape=(None, 130), chunks=chunks)
    refused(folder, f"{FIRST}, ")


@pytest.mark.parametrize(("name", "value"), [("mean", np.nan), ("std", np.inf), ("std", -1.0)])
def test_statistics_that_cannot_be_are_refused(folder, name, value):
    values = stored(folder / STATISTICS, f"1/{name}")
    values[3] = value
    replace(folder / STATISTICS, f"1/{name}", values)
    refused(folder, "fold 1, .*finite means and deviations")


@pytest.mark.parametrize(
    "labels",
    [
        np.eye(4)[:2] * 2,
        np.array([[0, 0, 0, 0], [1, 0, 0, 0]]),
        np.array([[1, 1, 0, 0], [1, 0, 0, 0]]),
        np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0]]),
        np.array([[np.nan, 1, 0, 0], [1, 0, 0, 0]]),
    ],
)
def test_labels_that_are_not_one_hot_are_refused(folder, labels):
    np.save(folder / "target/1/val_label.npy", labels)
    refused(folder, "val_label.npy: Expected one-hot")


@pytest.mark.parametrize(
    "labels", [np.zeros(2), np.eye(5)[:2], np.zeros((0, 4)), np.zeros((2, 4), "S1")]
)
def test_labels_of_another_shape_are_refused(folder, labels):
    np.save(folder / "target/1/val_label.npy", labels)
    refused(folder, r"val_label.npy: Expected numbers of shape \(N, 4\)")


def test_pickled_objects_in_a_npy_file_are_not_loaded(folder):
    names = np.array([["a"], ["b"]], dtype=object)
    np.save(folder / "target/1/val_int2name.npy", names, allow_pickle=True)
    refused(folder, "val_int2name.npy: .*Python objects")


def test_another_number_of_names_than_labels_is_refused(folder):
    file = folder / "target/1/tst_int2name.npy"
    np.save(file, np.load(file)[:1])
    refused(folder, "tst_int2name.npy: Expected names of 2 labels, but found 1 names")


def test_names_that_are_no_text_are_refused(folder):
    file = folder / "target/1/tst_int2name.npy"
    np.save(file, np.array([[b"\xff"], [b"a"]]))
    refused(folder, "tst_int2name.npy: Expected names in UTF-8")
    np.save(file, np.array([[1], [2]]))
    refused(folder, r"tst_int2name.npy: Expected text of shape \(N, 1\)")


def test_an_utterance_in_two_splits_is_a_leak(folder):
    names = np.load(folder / "target/1/tst_int2name.npy")
    names[0] = FIRST.encode()
    np.save(folder / "target/1/tst_int2name.npy", names)
    refused(folder, f"1 occur repeatedly, such as {FIRST} in train and test")


@pytest.mark.parametrize("fold", range(1, 11))
def test_the_demo_holds_out_one_session_in_every_fold(pristine, fold):
    data = load_iemocap(pristine, fold)
    speakers = {
        split: {f"{name[:5]}{name[-4]}" for name in getattr(data, split).ids}
        for split in ("train", "valid", "test")
    }
    assert speakers["valid"] == {SPEAKERS[fold - 1]}
    (valid,), (test,) = speakers["valid"], speakers["test"]
    assert valid[:5] == test[:5]
    assert valid != test
    assert speakers["train"] == set(SPEAKERS) - {valid, test}


def test_the_demo_is_the_same_for_the_same_seed_and_never_replaces_another(pristine, tmp_path):
    simulate_iemocap(tmp_path / "again", per_speaker=2)
    simulate_iemocap(tmp_path / "again", per_speaker=2)
    assert load_iemocap(tmp_path / "again", 1).digest == load_iemocap(pristine, 1).digest
    with pytest.raises(UserError, match="same settings"):
        simulate_iemocap(tmp_path / "again", per_speaker=2, seed=1)
    with pytest.raises(UserError, match="same settings"):
        simulate_iemocap(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["again"]


def test_text_of_the_demo_tells_most_and_vision_nothing(tmp_path):
    simulate_iemocap(tmp_path / "demo")
    data = load_iemocap(tmp_path / "demo", 1)

    def means(dataset, modality):
        batch = dataset.batch(range(len(dataset)))["inputs"][modality]
        return (batch.values.sum(1) / batch.mask.sum(1, keepdim=True)).numpy()

    def accuracy(modality):
        model = RidgeClassifier(100).fit(means(data.train, modality), data.train.target)
        parts = (data.valid, data.test)
        return np.mean([model.score(means(part, modality), part.target) for part in parts])

    found = {modality: accuracy(modality) for modality in WIDTHS}
    assert found["text"] > 0.75
    assert 0.4 < found["audio"] < 0.7
    assert found["vision"] < 0.4
