import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from cggm.errors import DataError, UserError
from cggm_cls.data.mosi.files import load_mosi, read_mosi
from cggm_cls.data.mosi.simulation import FAMILIES, simulate_mosi
from tests.quantifiers import every

WIDTHS = {"text": 3, "audio": 2, "vision": 4}


def sequences(lengths, steps, width, *, front=False, seed=0):
    """Padded arrays without any zero among the real steps."""
    rng = np.random.default_rng([seed, width])
    padded = np.zeros((len(lengths), steps, width), np.float32)
    for row, length in zip(padded, lengths, strict=True):
        start = steps - length if front else 0
        row[start : start + length] = rng.uniform(1, 2, (length, width))
    return padded


def mult_split(lengths=(2, 4, 3), *, front=False, seed=0):
    arrays = {
        name: sequences(lengths, 5, width, front=front, seed=seed) for name, width in WIDTHS.items()
    }
    labels = np.linspace(-3, 3, len(lengths), dtype=np.float32)[:, None, None]
    ids = np.array([[b"vid%d" % n, b"1.5", b"4.25"] for n in range(len(lengths))])
    return arrays | {"labels": labels, "id": ids}


def mult(**options):
    return {
        name: mult_split(seed=n, **options) for n, name in enumerate(("train", "valid", "test"))
    }


def mmsa(aligned):
    content = {}
    for number, name in enumerate(("train", "valid", "test")):
        split = mult_split(seed=number)
        attention = np.arange(5) < np.array([[2], [4], [3]])
        split["text"] = np.where(attention[..., None], split["text"], 9.0)
        split["text_bert"] = np.stack([attention * 7, attention, attention * 0], axis=1)
        split["regression_labels"] = split.pop("labels").reshape(-1)
        split["id"] = ["a$_$1", "a$_$2", "b$_$1"]
        if not aligned:
            split["audio"] = sequences((6, 1, 3), 7, 2)
            split["vision"] = sequences((8, 2, 5), 8, 4)
            split |= {"audio_lengths": [6, 1, 3], "vision_lengths": [8, 2, 5]}
        content[name] = split
    return content


def write(folder, content, name="data.pkl", protocol=4):
    file = folder / name
    file.write_bytes(pickle.dumps(content, protocol))
    return file


def read(folder, content):
    return read_mosi(write(folder, content))


def lengths_of(dataset):
    return {name: found.lengths.tolist() for name, found in dataset.inputs.items()}


def steps_of(dataset, modality, position):
    found = dataset.inputs[modality]
    first, last = found.offsets[position : position + 2]
    return found.values[first:last].numpy()


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_gives_the_same_data(tmp_path, protocol):
    found = read_mosi(write(tmp_path, mult(), protocol=protocol))
    assert found.digest == read(tmp_path, mult()).digest
    assert found.train.ids == ["vid0_1.5_4.25", "vid1_1.5_4.25", "vid2_1.5_4.25"]
    assert found.train.target.tolist() == [-3, 0, 3]
    assert found.widths == WIDTHS
    assert list(found.widths) == ["text", "audio", "vision"]
    assert found.classes is None
    assert not found.simulated


@pytest.mark.parametrize("front", [False, True])
def test_padding_on_either_side_is_left_out(tmp_path, front):
    found = read(tmp_path, mult(front=front))
    assert lengths_of(found.train) == {key: [2, 4, 3] for key in WIDTHS}
    expected = mult_split()["audio"][1, :4]
    np.testing.assert_array_equal(steps_of(found.train, "audio", 1), expected)
    assert found.notes == ("data.pkl has the mult-aligned layout.",)


def test_steps_of_an_aligned_file_stay_together(tmp_path):
    content = mult()
    content["train"]["audio"][1, 2] = 0  # silence within a sentence
    content["train"]["text"][1, 0] = 0  # a word without embedding
    found = read(tmp_path, content).train
    assert lengths_of(found) == {"text": [2, 3, 3], "audio": [2, 4, 3], "vision": [2, 4, 3]}
    assert (steps_of(found, "audio", 1)[2] == 0).all()


def test_unaligned_modalities_have_steps_of_their_own(tmp_path):
    content = mult()
    for split in content.values():
        split["audio"] = sequences((7, 1, 2), 9, 2, front=True)
    found = read(tmp_path, content)
    assert found.notes[0] == "data.pkl has the mult-unaligned layout."
    assert lengths_of(found.valid) == {"text": [2, 4, 3], "audio": [7, 1, 2], "vision": [2, 4, 3]}


def test_attention_mask_tells_the_steps_of_bert(tmp_path):
    found = read(tmp_path, mmsa(aligned=True))
    assert found.notes == ("data.pkl has the mmsa-aligned layout.",)
    assert lengths_of(found.test) == {key: [2, 4, 3] for key in WIDTHS}
    assert found.test.inputs["text"].values.max() < 9
    assert found.test.ids == ["a$_$1", "a$_$2", "b$_$1"]


def test_steps_of_audio_beside_a_shorter_sentence_are_kept_but_no_padding_of_bert(tmp_path):
    content = mmsa(aligned=True)
    content["train"]["audio"] = sequences((3, 4, 3), 5, 2)
    found = read(tmp_path, content).train
    assert lengths_of(found) == {"text": [2, 4, 3], "audio": [3, 4, 3], "vision": [3, 4, 3]}


def test_lengths_decide_where_the_file_has_them(tmp_path):
    content = mmsa(aligned=False)
    content["train"]["audio"][0, 5] = 0  # silent, yet within the length
    content["train"]["audio"][1, 1:] = 8  # beyond the length
    found = read(tmp_path, content)
    assert found.notes == ("data.pkl has the mmsa-unaligned layout.",)
    assert lengths_of(found.train) == {"text": [2, 4, 3], "audio": [6, 1, 3], "vision": [8, 2, 5]}
    assert found.train.inputs["audio"].values.max() < 8


def test_values_that_are_not_finite_become_zero_and_are_counted(tmp_path):
    content = mult()
    content["train"]["audio"][0, 0] = [-np.inf, np.nan]
    content["train"]["audio"][1, 0, 0] = np.inf
    content["test"]["vision"] = content["test"]["vision"].astype(np.float64)
    content["test"]["vision"][2, 0, 3] = 1e300
    found = read(tmp_path, content)
    assert found.notes[1:] == (
        "train audio: 3 values were infinite or NaN and are 0 now.",
        "test vision: 1 values were infinite or NaN and are 0 now.",
    )
    assert steps_of(found.train, "audio", 0)[0].tolist() == [0, 0]
    assert every(part.values.isfinite().all() for part in found.train.inputs.values())


def test_step_of_infinite_values_alone_is_no_step_of_an_unaligned_file(tmp_path):
    content = mult()
    for split in content.values():
        split["audio"] = sequences((7, 1, 2), 9, 2)
    content["train"]["audio"][0, 6] = -np.inf
    assert lengths_of(read(tmp_path, content).train)["audio"] == [6, 1, 2]


def test_samples_without_a_step_stay_and_are_counted(tmp_path):
    content = mult()
    content["valid"]["text"][:2] = 0
    found = read(tmp_path, content)
    assert lengths_of(found.valid) == {"text": [0, 0, 3], "audio": [2, 4, 3], "vision": [2, 4, 3]}
    assert found.notes[1:] == ("valid text: 2 samples have no real step.",)
    assert found.valid.batch([0])["inputs"]["text"].mask.tolist() == [[False]]


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1), (3,)])
@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_labels_and_values_of_any_type_become_float32(tmp_path, shape, kind):
    content = mult()
    for split in content.values():
        split["labels"] = split["labels"].reshape(shape).astype(kind)
        split["text"] = split["text"].astype(kind)
    found = read(tmp_path, content).train
    assert str(found.target.dtype) == str(found.inputs["text"].values.dtype) == "torch.float32"
    assert found.target.tolist() == [-3, 0, 3]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (None, ["train-0001", "train-0002", "train-0003"]),
        (np.array([[b"v", b"0", b"1"]] * 3), ["v_0_1"] * 3),
        (np.array([["v", "0", "1"]] * 3), ["v_0_1"] * 3),
        (np.array(["a", "b", "c"]), ["a", "b", "c"]),
        ([["a"], ["b"], ["c"]], ["a", "b", "c"]),
    ],
)
def test_identifiers(tmp_path, ids, expected):
    content = mult()
    for split in content.values():
        split["id"] = ids
        if ids is None:
            del split["id"]
    assert read(tmp_path, content).train.ids == expected


def test_arrays_larger_than_a_block_are_read_whole(tmp_path):
    content = mult()
    values = np.random.default_rng(0).standard_normal((3, 5, 300_000), np.float32)
    for split in content.values():
        split["text"] = values[:, :, :1]
    content["train"]["text"] = content["valid"]["text"] = content["test"]["text"] = values
    found = read(tmp_path, content).train
    np.testing.assert_array_equal(found.inputs["text"].values, values.reshape(15, -1))


def change(*path, to=None):
    """Replaces what lies at a path of keys, or deletes it."""

    def apply(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        if to is None:
            del content[last]
        else:
            content[last] = to(content[last])

    return apply


FAULTS = {
    "missing split": (change("valid"), "found the keys train, test"),
    "missing modality": (
        change("test", "audio"),
        "test audio,.*the split has the keys text, vision, labels, id",
    ),
    "missing labels": (change("train", "labels"), "train labels,.*the keys text, audio"),
    "fewer sequences": (
        change("valid", "vision", to=lambda v: v[:2]),
        r"valid vision,.*Expected 3 samples, as many as labels.*\(2, 5, 4\)",
    ),
    "fewer identifiers": (change("test", "id", to=lambda v: v[:1]), "test id,.*Expected 3 samples"),
    "matrix": (
        change("train", "audio", to=lambda v: v[0]),
        r"train audio,.*found the shape \(5, 2",
    ),
    "no features": (change("train", "audio", to=lambda v: v[..., :0]), "train audio,.*shape"),
    "texts": (change("train", "audio", to=lambda v: v.astype(str)), "train audio,.*numbers"),
    "other width": (
        change("test", "vision", to=lambda v: v[..., :2]),
        "test vision,.*Expected 4 features per step, as in train, but found 2",
    ),
    "large label": (
        change("valid", "labels", to=lambda v: v * 1.5),
        r"valid labels,.*in \[-3, 3\], but found -4.5 at sample 0 and 1 more",
    ),
    "label is NaN": (
        change("train", "labels", to=lambda v: v * np.nan),
        "train labels,.*found nan",
    ),
    "two labels": (change("train", "labels", to=lambda v: np.repeat(v, 2, 1)), "one label per"),
    "no sample": (change("test", to=lambda s: {k: v[:0] for k, v in s.items()}), "test labels"),
    "IEMOCAP": (change("train", "labels", to=lambda v: np.zeros((3, 4, 2))), "IEMOCAP in the MulT"),
    "CH-SIMS": (change("train", to=lambda s: s | {"regression_labels_T": 0}), "CH-SIMS"),
    "Food-101": (
        change("train", to=lambda s: {"image": s["vision"], "label": s["labels"]}),
        "train split has the keys image, label",
    ),
    "split of tuples": (change("train", to=lambda s: [(1, 2)]), "MISA and MAG-BERT"),
    "split is an array": (change("train", to=lambda s: s["text"]), "train of type ndarray"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_mult_files_are_named(tmp_path, fault):
    apply, message = FAULTS[fault]
    content = mult()
    apply(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, content)
    assert caught.value.file == tmp_path / "data.pkl"


MMSA_FAULTS = {
    "lengths beyond the array": (
        change("train", "audio_lengths", to=lambda v: [9, 1, 1]),
        r"train audio_lengths,.*0 to 7, but found the shape \(3,\), 1 to 9",
    ),
    "negative length": (change("test", "vision_lengths", to=lambda v: [-1, 1, 1]), "test vision_l"),
    "too few lengths": (change("train", "audio_lengths", to=lambda v: [1]), "Expected 3 samples"),
    "ragged lengths": (change("train", "audio_lengths", to=lambda v: [1, [2, 3], 1]), "ragged"),
    "attention of another length": (
        change("valid", "text_bert", to=lambda v: v[..., :4]),
        r"valid text_bert,.*\(3, 3, 5\), as long as the text, but found \(3, 3, 4\)",
    ),
    "missing text": (change("train", "text"), "train text,.*keys audio, vision"),
    "missing labels": (change("valid", "regression_labels"), "valid regression_labels,"),
}


@pytest.mark.parametrize("fault", MMSA_FAULTS)
def test_faults_of_mmsa_files_are_named(tmp_path, fault):
    apply, message = MMSA_FAULTS[fault]
    content = mmsa(aligned=False)
    apply(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([(("word",), 1.0, "segment")], "MISA and MAG-BERT"),
        ({"train": [], "dev": [], "test": []}, "MISA and MAG-BERT"),
        ("pizza", "an object of type str"),
        (np.zeros(3), "an object of type ndarray"),
        ({f"class {n}": n for n in range(101)}, r"the keys class 0, .*, class 11, \.\.\."),
        ({}, "the keys none"),
    ],
)
def test_other_objects_are_named(tmp_path, content, message):
    with pytest.raises(DataError, match=f"{message}.*mosi_data.pkl"):
        read(tmp_path, content)


def test_arrays_of_objects_are_refused(tmp_path):
    content = mult()
    content["train"]["text"] = np.array([{}, [], ()], object)
    with pytest.raises(DataError, match="object"):
        read(tmp_path, content)


def test_words_file_of_multibench_is_named(tmp_path):
    with h5py.File(tmp_path / "mosi.hdf5", "w") as file:
        file["words"] = [1]
    with pytest.raises(DataError, match="HDF5 file, as MultiBench uses for words"):
        read_mosi(tmp_path / "mosi.hdf5")


@pytest.mark.parametrize("family", FAMILIES)
def test_simulated_file_is_recognized_as_its_family(tmp_path, family):
    file = tmp_path / "new" / "demo.pkl"
    simulate_mosi(file, family=family, train=12, valid=3, test=4)
    found = read_mosi(file)
    assert found.simulated
    assert found.notes[0] == f"demo.pkl has the {family} layout."
    assert [len(split) for split in (found.train, found.valid, found.test)] == [12, 3, 4]
    text, audio, vision = (part.lengths for part in found.train.inputs.values())
    assert text.min() >= 6
    assert text.max() <= 20
    aligned = "unaligned" not in family
    assert text.equal(audio) == text.equal(vision) == aligned
    assert [file.name for file in file.parent.iterdir()] == ["demo.pkl"]


def test_simulated_file_looks_like_the_genuine_one(tmp_path):
    simulate_mosi(tmp_path / "demo.pkl", train=12, valid=3, test=4)
    content = pickle.loads((tmp_path / "demo.pkl").read_bytes())
    assert {*content} == {"simulated", "train", "valid", "test"}
    train = content["train"]
    shapes = {name: array.shape for name, array in train.items()}
    assert shapes == {
        "text": (12, 50, 300),
        "audio": (12, 50, 5),
        "vision": (12, 50, 20),
        "labels": (12, 1, 1),
        "id": (12, 3),
    }
    assert train["id"].dtype.kind == "S"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("demo") / "demo.pkl"
    simulate_mosi(file)
    return file


def test_simulated_labels_are_spread_like_mean_ratings(demo):
    labels = read_mosi(demo).train.target.double()
    assert len(labels) == 400
    assert ((labels * 5).round() / 5 - labels).abs().max() < 1e-6
    assert labels.abs().max() <= 3
    assert (labels == 0).sum() > 4
    assert 1.3 < labels.std() < 2


def test_simulated_audio_has_infinite_values_that_are_counted(demo):
    (note,) = (note for note in read_mosi(demo).notes if note.startswith("train"))
    assert note.startswith("train audio: ")
    assert 20 < int(note.split()[2]) < 100


def test_simulated_text_dominates_and_vision_is_useless(demo):
    found = read_mosi(demo)
    text, audio, vision = (held_out_correlation(found, name) for name in found.widths)
    assert text > 0.8
    assert 0.3 < audio < 0.6
    assert abs(vision) < 0.2


def held_out_correlation(data, modality):
    """Of a ridge regression on the mean step, fitted to the training split."""
    features, targets = {}, {}
    for name, split in (("train", data.train), ("test", data.test)):
        steps = (steps_of(split, modality, n).mean(axis=0) for n in range(len(split)))
        features[name] = np.stack([*steps])
        targets[name] = split.target.numpy()
    x, y = features["train"], targets["train"]
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return np.corrcoef(features["test"] @ weights, targets["test"])[0, 1]


def test_simulated_file_depends_on_the_seed_alone(tmp_path):
    files = [tmp_path / name for name in ("one.pkl", "same.pkl", "other.pkl")]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        simulate_mosi(file, seed=seed, train=3, valid=2, test=2)
    one, same, other = (file.read_bytes() for file in files)
    assert one == same != other


def test_unknown_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one of .*mult-aligned.*but got 'mosi'"):
        simulate_mosi(tmp_path / "demo.pkl", family="mosi")
    assert not [*tmp_path.iterdir()]


def test_folder_with_one_pickle_is_opened(tmp_path):
    file = write(tmp_path, mult())
    (tmp_path / "readme.txt").write_text("words")
    found = load_mosi(tmp_path, None)
    assert found.digest == read_mosi(file).digest
    assert load_mosi(tmp_path, None).digest == found.digest


def test_converted_copy_replaces_the_pickle(tmp_path):
    content = mult()
    content["train"]["audio"][0, 0] = [-np.inf, np.nan]
    content["valid"]["text"][0] = 0
    file, store = write(tmp_path, content), tmp_path / "store"
    first = read_mosi(file)
    load_mosi(file, store)
    file.unlink()
    for again in (load_mosi(file, store), load_mosi(store, None)):
        assert again.digest == first.digest
        assert again.notes == first.notes
        assert lengths_of(again.valid) == lengths_of(first.valid)
        assert again.test.ids == first.test.ids


def test_wrong_family_leaves_nothing_behind(tmp_path):
    file = write(tmp_path, {"train": [], "dev": [], "test": []})
    with pytest.raises(DataError, match="MISA"):
        load_mosi(file, tmp_path / "store")
    assert [*tmp_path.iterdir()] == [file]


def test_folder_with_several_pickles_leaves_a_choice(tmp_path):
    write(tmp_path, mult(), "mosi_data.pkl")
    write(tmp_path, mult(), "mosi_data_noalign.pkl")
    with pytest.raises(UserError, match=r"found mosi_data\.pkl, mosi_data_noalign\.pkl"):
        load_mosi(tmp_path, None)


def test_folder_without_pickle_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected one file .* but found none"):
        load_mosi(tmp_path, None)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pkl"):
        load_mosi(tmp_path / "absent.pkl", None)
