"""Formats, alignment by identifiers, descriptions, and what looks like something else."""

import numpy as np
import pandas as pd
import pytest

from cggm.errors import DataError, UserError
from cggm_cls.data.arrays.load import load_array_folder
from tests.cggm_cls.data.arrays.folders import (
    ECG,
    IDS,
    LAB,
    LENGTHS,
    SPLIT,
    TARGET,
    write_array_file,
    write_csv,
    write_tables,
)

ORDER = np.array([3, 0, 7, 1, 6, 2, 5, 4])


def rows(data, split="train", name="lab"):
    return getattr(data, split).inputs[name].values.numpy()


def read(folder, **options):
    return load_array_folder(folder, standardize=False, **options)


def described(folder, text):
    (folder / "dataset.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_are_aligned_by_their_identifiers(suffix, tmp_path):
    data = read(write_tables(tmp_path / "own", ORDER, suffix))
    assert rows(data).tolist() == LAB[:4].tolist()
    assert rows(data, "test").tolist() == LAB[6:].tolist()
    assert list(data.train.ids) == IDS[:4].tolist(), "007 and not 7"
    assert data.train.target.tolist() == [1, 0, 1, 0]
    assert data.names == ("sick", "well")
    assert data.widths == {"ecg": 1, "lab": 2}
    assert data.train.inputs["ecg"].lengths.tolist() == LENGTHS[:4].tolist()
    notes = " ".join(data.notes)
    assert f"lab{suffix}: rows were put into the target's order." in notes
    assert "ecg.npy has no identifiers: its rows are taken in the order of the target." in notes
    assert "modalities ecg (up to 3 steps of 1) of ecg.npy, lab (2 features: crp, ldh)" in notes


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors"])
def test_one_file_holds_all_arrays(suffix, tmp_path):
    text = suffix != ".safetensors"  # which has none
    arrays = {
        "lab": LAB.astype(np.float32),
        "ecg": ECG,
        "ecg.lengths": LENGTHS,
        "target": TARGET if text else (TARGET == "well").astype(np.int64),
        **({"split": SPLIT} if text else {}),
    }
    write_array_file(tmp_path / f"data{suffix}", arrays)
    if not text:
        np.save(tmp_path / "split.npy", SPLIT)
    data = read(tmp_path)
    assert rows(data).tolist() == LAB[:4].tolist()
    assert rows(data, name="ecg")[:, 0].tolist() == [0, 1, 2, 3, 4, 6, 9, 10, 11]
    assert data.train.target.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors"])
def test_a_file_for_each_split_may_pad_to_another_length(suffix, tmp_path):
    for split, steps in {"train": 3, "valid": 2, "test": 3}.items():
        chosen = split == SPLIT
        arrays = {
            "lab": LAB[chosen],
            "ecg": ECG[chosen, :steps],
            "target": np.arange(8)[chosen] % 2,
        }
        write_array_file(tmp_path / f"{split}{suffix}", arrays)
    data = read(tmp_path)
    assert data.valid.inputs["ecg"].lengths.tolist() == [2, 2]
    assert rows(data, "valid", "ecg")[:, 0].tolist() == [12, 13, 15, 16]
    assert rows(data, "test").tolist() == LAB[6:].tolist()


def test_bfloat16_is_read_as_numbers(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.tensor(LAB).bfloat16()}, tmp_path / "lab.safetensors")
    np.save(tmp_path / "target.npy", TARGET)
    np.save(tmp_path / "split.npy", SPLIT)
    assert rows(read(tmp_path)).tolist() == torch.tensor(LAB[:4]).bfloat16().tolist()


def test_identifiers_beside_plain_arrays_align_them_with_tables(tmp_path):
    folder = write_tables(tmp_path / "own")
    np.save(folder / "ecg.npy", ECG[ORDER])
    np.save(folder / "ecg.lengths.npy", LENGTHS[ORDER])
    np.save(folder / "id.npy", IDS[ORDER])
    data = read(folder)
    assert rows(data, name="ecg")[:, 0].tolist() == [0, 1, 2, 3, 4, 6, 9, 10, 11]


def test_csv_keeps_every_bit_and_every_text(tmp_path):
    folder = write_tables(tmp_path / "own")
    exact = np.array([0.1, 1 / 3, 2.0**-1074, 1e308, -0.0, 5e-324, 123456789.123456789, 1e22])
    write_csv(folder / "lab.csv", {"id": IDS, "crp": exact, "ldh": LAB[:, 1]})
    write_csv(folder / "labels.csv", {"id": IDS, "country": ["NA", "NO"] * 4, "split": SPLIT})
    from cggm_cls.data.arrays.files import read_array_file

    found = read_array_file(folder / "lab.csv", lambda name: name == "id").arrays
    assert found["crp"].tobytes() == exact.tobytes()
    write_csv(folder / "lab.csv", {"id": IDS, "crp": LAB[:, 0], "ldh": LAB[:, 1]})
    assert read(folder).names == ("NA", "NO")


YAML = """
modalities:
  blood: {file: lab.csv, columns: [crp, "l*"], steps: 2}
  ecg: {file: ecg.npy, lengths: ecg.lengths.npy}
targets: {diagnosis: labels.csv:diagnosis, age: {at: labels.csv:age, kind: numbers}}
id: id
split: labels.csv:split
"""


def with_age(folder):
    facts = {"id": IDS, "diagnosis": TARGET, "split": SPLIT, "age": np.arange(20, 28)}
    write_csv(folder / "labels.csv", facts)
    return folder


def test_a_description_names_columns_steps_and_one_of_several_targets(tmp_path):
    folder = described(with_age(write_tables(tmp_path / "own", ORDER)), YAML)
    (folder / "spare.csv").write_text("a\n1\n")
    data = read(folder, target="diagnosis")
    assert list(data.widths) == ["blood", "ecg"], "in the order of the description"
    assert rows(data, name="blood")[:, 0].tolist() == LAB[:4].ravel().tolist()
    assert data.train.inputs["blood"].lengths.tolist() == [2] * 4
    assert "Other targets are not looked at: age." in data.notes
    assert "Not read: spare.csv." in data.notes
    ages = read(folder, target="age")
    assert ages.classes is None
    assert ages.train.target.tolist() == [20, 21, 22, 23]
    with pytest.raises(UserError, match=r"expected one target, but found diagnosis, age.*--target"):
        read(folder)
    with pytest.raises(UserError, match="expected a target of diagnosis, age, but got sex"):
        read(folder, target="sex")
    described(folder, YAML + "target: age\n")
    assert read(folder).classes is None


def test_several_label_columns_are_never_features(tmp_path):
    folder = with_age(write_tables(tmp_path / "own"))
    assert read(folder, target="diagnosis").widths == {"ecg": 1, "lab": 2}
    with pytest.raises(UserError, match="found diagnosis, age"):
        read(folder)


def test_features_that_are_cut_are_standardized_one_by_one(tmp_path):
    folder = described(with_age(write_tables(tmp_path / "own")), YAML + "target: diagnosis\n")
    data = load_array_folder(folder)
    # crp of the training split is 0, 4, 16, 36: mean 14, variance (14^2 + 10^2 + 2^2 + 22^2) / 4
    expected = (np.array([0, 4, 16, 36]) - 14) / (784 / 4) ** 0.5
    assert rows(data, name="blood")[::2, 0] == pytest.approx(expected, abs=1e-6)
    assert data.scaling["blood"].mean.shape == (2, 1)
    assert data.scaling["blood"].mean[0, 0] == 14
    assert data.scaling["ecg"].deviation.shape == (1,)


def test_masks_say_which_steps_and_which_samples_are_there(tmp_path):
    folder = write_tables(tmp_path / "own")
    (folder / "ecg.lengths.npy").unlink()
    np.save(folder / "ecg.mask.npy", np.array([[1, 0, 1]] + [[1, 1, 1]] * 7))
    (folder / "lab.csv").unlink()
    np.savez(folder / "data.npz", lab=LAB, **{"lab.mask": np.array([0, *[1] * 7], bool)})
    data = read(folder)
    assert data.absences
    assert rows(data, name="ecg")[:2, 0].tolist() == [0, 2]
    assert data.train.inputs["lab"].lengths.tolist() == [0, 1, 1, 1]
    assert rows(data)[0].tolist() == LAB[1].tolist()


def test_lengths_in_a_table_follow_its_identifiers(tmp_path):
    folder = write_tables(tmp_path / "own")
    facts = {"id": IDS[ORDER], "steps": LENGTHS[ORDER]}
    write_csv(folder / "facts.csv", facts)
    described(
        folder,
        "modalities: {ecg: {file: ecg.npy, lengths: facts.csv:steps}}\n"
        "target: labels.csv:diagnosis\nsplit: labels.csv:split\n",
    )
    assert read(folder).train.inputs["ecg"].lengths.tolist() == LENGTHS[:4].tolist()


def test_samples_that_a_file_lacks_are_refused_or_absent(tmp_path):
    folder = write_tables(tmp_path / "own", np.array([1, 2, 3, 4, 5, 6, 7]))
    with pytest.raises(
        DataError, match=r"lab\.csv.*1 samples are not in it, such as '007'.*absent"
    ):
        read(folder)
    data = read(folder, missing="absent")
    assert data.train.inputs["lab"].lengths.tolist() == [0, 1, 1, 1]
    assert rows(data).tolist() == LAB[1:4].tolist()
    assert data.absences
    extra = {"id": [*IDS, "099"], "crp": [*LAB[:, 0], 1], "ldh": [*LAB[:, 1], 1]}
    write_csv(folder / "lab.csv", extra)
    with pytest.raises(DataError, match="1 of its rows have no target, such as '099'"):
        read(folder)
    assert rows(read(folder, missing="absent")).tolist() == LAB[:4].tolist()
    write_csv(folder / "lab.csv", {**extra, "id": [f"x{n}" for n in range(9)]})
    with pytest.raises(DataError, match="8 samples are not in it"):
        read(folder, missing="absent")


def test_samples_without_any_modality_are_left_out(tmp_path):
    folder = write_tables(tmp_path / "own", np.array([1, 2, 3, 4, 5, 6, 7]))
    np.save(folder / "ecg.lengths.npy", np.array([0, *LENGTHS[1:]]))
    data = read(folder, missing="absent")
    assert list(data.train.ids) == IDS[1:4].tolist()
    assert "1 samples have no modality left, such as 007: left out." in data.notes


def test_orders_that_nobody_can_compare_are_refused(tmp_path):
    write_csv(tmp_path / "lab.csv", {"id": IDS[ORDER], "crp": LAB[:, 0]})
    write_csv(tmp_path / "vital.csv", {"id": IDS, "pulse": LAB[:, 0]})
    np.save(tmp_path / "target.npy", TARGET)
    np.save(tmp_path / "split.npy", SPLIT)
    with pytest.raises(DataError, match=r"because the target has none.*Give the target"):
        read(tmp_path)


TABLE = {"id": IDS, "crp": LAB[:, 0], "ldh": LAB[:, 1]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({**TABLE, "id": ["007", *IDS[:7]]}, "'007' is in rows 0 and 1"),
        ({**TABLE, "sex": [1, 0, "f", *[1] * 5]}, "'sex' holds 'f' in row 2.*Write it as numbers"),
        ({**TABLE, "crp": ["0,5"] * 8}, "column crp.*'0,5' in row 0.*with a decimal point"),
        ({**TABLE, "crp": ["1.000,5"] * 8}, "'1.000,5' in row 0.*without signs between thousands"),
        ({**TABLE, "day": ["2026-01-02"] * 8}, "column day.*'2026-01-02' in row 0"),
        ({**TABLE, "who": [f"p{n}" for n in range(8)]}, "Write `id: who` into dataset.yaml"),
        ({**TABLE, "ok": ["True", "", *["False"] * 6]}, "column ok.*1 are empty.*in row 1"),
        ({**TABLE, "id": ["", *IDS[1:]]}, "array id.*1 are empty, the first in row 0"),
        ({**TABLE, "patient_id": [5] * 8}, "'patient_id' is called like an identifier.*`id: pat"),
        ({**TABLE, "": range(8)}, "'' is called like an identifier"),
        ({**TABLE, "patientID": [5] * 8}, "'patientID' is called like an identifier"),
        ({"a": LAB[:, 0], "b": LAB[:, 1], "a ": LAB[:, 1]}, "found 'a' twice.*Add a header"),
        ({"0.5": LAB[:, 0], "1.5": LAB[:, 1]}, "found numbers.*Add a header"),
        ({"id": IDS[:7], "crp": LAB[:7, 0]}, "1 samples are not in it"),
        ({"crp": LAB[:7, 0]}, "array lab, .*8 samples, as many as `target`"),
        ({**TABLE, "crp": ["", *LAB[1:, 0]]}, r"NaN.*in 007 \(columns crp\)"),
        ({**TABLE, "crp": ["inf", *LAB[1:, 0]]}, r"infinite.*in 007 \(columns crp\)"),
    ],
)
def test_tables_that_are_not_what_they_seem_are_refused(table, message, tmp_path):
    folder = write_tables(tmp_path / "own")
    write_csv(folder / "lab.csv", table)
    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert "lab.csv" in str(caught.value)


def test_names_that_only_end_like_one_are_features(tmp_path):
    folder = write_tables(tmp_path / "own")
    write_csv(folder / "lab.csv", {"id": IDS, "cardiac_index": LAB[:, 0], "thyroid": LAB[:, 1]})
    assert read(folder).widths["lab"] == 2


def test_an_empty_group_is_no_group(tmp_path):
    folder = write_tables(tmp_path / "own")
    facts = {"id": IDS, "diagnosis": TARGET, "split": SPLIT, "group": ["a", "", *"bbccdd"]}
    write_csv(folder / "labels.csv", facts)
    with pytest.raises(DataError, match=r"array group.*1 are empty, the first in row 1"):
        read(folder)


def test_the_name_of_an_array_may_say_more_than_its_file(tmp_path):
    np.savez(tmp_path / "outcome.npz", target=TARGET)
    np.savez(tmp_path / "lab.npz", x=LAB)
    np.save(tmp_path / "split.npy", SPLIT)
    data = read(tmp_path)
    assert (data.names, list(data.widths)) == (("sick", "well"), ["lab"])


def test_columns_that_number_the_rows_are_no_features(tmp_path):
    count = 12
    write_csv(
        tmp_path / "lab.csv",
        {
            "visit": np.arange(5, 5 + count)[::-1],
            "crp": np.linspace(0, 1, count),
            "label": "ab" * 6,
        },
    )
    message = "'visit' numbers the rows without a gap.*`id: visit`.*`columns`"
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    described(tmp_path, "modalities: {lab: lab.csv}\ntarget: lab.csv:label\nid: visit\n")
    data = read(tmp_path)
    assert data.widths == {"lab": 1}
    assert "16" in {*data.train.ids, *data.valid.ids, *data.test.ids}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modalities: {lab: lab.csv}\n", "at least one modality and one target"),
        ("modalities: {}\ntarget: labels.csv:diagnosis\n", "at least one modality"),
        ("modality: {lab: lab.csv}\n", "unknown key 'modality'. Did you mean modalities?"),
        ("modalities: {lab: {file: lab.csv, column: a}}\n", "lab: unknown key 'column'. Did you"),
        ("modalities: [lab.csv]\n", "expected modalities to be an object"),
        ("modalities: {lab: lab.csv}\ntarget: labels.csv:age\n", "'age' in it, but it holds id"),
        ("modalities: {lab: lab.csv}\ntarget: labels.csv\n", "the name of an array in it"),
        (
            "modalities: {lab: lab.cvs}\ntarget: labels.csv:diagnosis\n",
            r"lab\.cvs: Expected a file that ends in \.npy",
        ),
        ("modalities: {lab: lob.csv}\ntarget: labels.csv:diagnosis\n", "lob.csv.*there is none"),
        (
            "modalities: {lab: lab.csv}\nmodalities: {ecg: ecg.npy}\ntarget: labels.csv:age\n",
            "dataset.yaml, line 2: .*found the key 'modalities' twice",
        ),
        (
            'modalities: {lab: {file: lab.csv, columns: "*d*"}}\ntarget: lab.csv:ldh\n',
            "column ldh.*'ldh' is the target. Leave it out of `columns`",
        ),
        (
            "modalities: {lab: {file: lab.csv, columns: crx}}\ntarget: labels.csv:diagnosis\n",
            "Expected a column 'crx', but it has id, crp, ldh",
        ),
        (
            "modalities: {lab: {file: lab.csv, steps: 3}}\ntarget: labels.csv:diagnosis\n",
            "a multiple of 3 steps",
        ),
        (
            "modalities: {ecg: {file: ecg.npy, lengths: a.npy, mask: b.npy}}\ntarget: a.npy\n",
            "`lengths` or `mask`, but got both",
        ),
        (
            "modalities: {lab: lab.csv}\ntarget: labels.csv:age\ndraw: {valid: 0.5, test: 0.5}",
            "together below 1",
        ),
        (
            "modalities: {lab: lab.csv}\ntarget: {at: labels.csv:diagnosis, kind: words}\n",
            "classes or numbers, but got words",
        ),
        (
            "modalities: {lab: lab.csv}\ntarget: labels.csv:diagnosis\nid: patient\n",
            r"Expected .patient., the identifiers of dataset.yaml, but found lab.csv \(id, crp",
        ),
        (
            "modalities: {lab: lab.csv}\ntarget: labels.csv:age\ndraw: {valid: .nan, test: 0.5}",
            "together below 1",
        ),
        (
            "modalities: {lab: lab.csv}\ntarget: {at: labels.csv:diagnosis, kind: numbers}\n",
            "Expected numbers, but found 'well'",
        ),
    ],
)
def test_a_wrong_description_is_one_message(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(described(write_tables(tmp_path / "own"), text))


def test_one_name_for_two_things_is_refused(tmp_path):
    folder = write_tables(tmp_path / "own")
    np.save(folder / "lab.npy", LAB)
    with pytest.raises(DataError, match=r"Expected one lab, but found it in lab\.csv and in lab"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lab.csv", b"", "no header"),
        ("lab.csv", b"a;b\n1;2\n", "by commas, but found semicolons or tabs.*points in numbers"),
        ("lab.csv", b"a,b\n1,2,3\n", "lab.csv.*Expected 2 values in every row, but line 2 has 3"),
        ("lab.csv", b"a,b\n1,2\n\n3\n", "but line 4 has 1"),
        ("lab.csv", b"a,b\n\xff\xfe,2\n", "lab.csv.*cannot be read.*Save it as UTF-8"),
        ("labels.csv", b",label\n0,a\n", "labels.csv: Expected a name for each column"),
        ("lab.parquet", b"PAR1 no table PAR1", "lab.parquet.*cannot be read"),
        ("lab.h5", b"\x89HDF no file", "lab.h5.*cannot be read"),
        ("lab.safetensors", b"\xff" * 16, "lab.safetensors.*cannot be read"),
        ("lab.npz", b"PK no archive", "lab.npz.*cannot be read"),
        ("lab.npz", b"PK\x05\x06" + bytes(18), "lab.npz.*cannot be read .it holds none"),
        ("lab.npy", b"\x93NUMPY no array", "lab.npy.*cannot be read"),
    ],
)
def test_damaged_files_are_named(name, content, message, tmp_path):
    np.save(tmp_path / "target.npy", TARGET)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_hdf5_files_that_lead_elsewhere_are_refused(tmp_path):
    import h5py

    np.save(tmp_path / "target.npy", TARGET)
    write_array_file(tmp_path / "secret.h5", {"lab": LAB})
    with h5py.File(tmp_path / "lab.h5", "w") as root:
        root["lab"] = h5py.ExternalLink("secret.h5", "/lab")
    with pytest.raises(DataError, match="lab is a link that may leave the file"):
        read(tmp_path)
    with h5py.File(tmp_path / "lab.h5", "w") as root:
        root["a"] = root.create_group("group")
        root["group/again"] = root["group"]
    with pytest.raises(DataError, match="nested deeper"):
        read(tmp_path)
    with h5py.File(tmp_path / "lab.h5", "w") as root:
        root.create_dataset("lab", (2**40,), "f4", chunks=(1024,), compression="gzip")
    with pytest.raises(DataError, match="it declares 4096 GiB"):
        read(tmp_path)


def test_pickles_and_other_files_are_left_alone_and_said(tmp_path):
    folder = write_tables(tmp_path / "own")
    (folder / "notes.txt").write_text("hello")
    (folder / "model.pkl").write_bytes(
        b"cos\nsystem\n(S'touch " + str(tmp_path).encode() + b"/x'\ntR."
    )
    assert "Not read: model.pkl, notes.txt; reading a pickle would run what it holds." in (
        read(folder).notes
    )
    assert not (tmp_path / "x").exists()


def test_parquet_without_a_reader_says_what_to_install(tmp_path, monkeypatch):
    folder = write_tables(tmp_path / "own", suffix=".parquet")
    monkeypatch.setattr("cggm_cls.data.arrays.files.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'lab\.parquet.*pip install "cggm\[arrays\]"'):
        read(folder)


def test_an_index_that_pandas_kept_in_parquet_is_a_column(tmp_path):
    folder = write_tables(tmp_path / "own")
    (folder / "lab.csv").unlink()
    table = pd.DataFrame({"crp": LAB[ORDER, 0]}, index=pd.Index(IDS[ORDER], name="id"))
    table.to_parquet(folder / "lab.parquet")
    assert rows(read(folder))[:, 0].tolist() == LAB[:4, 0].tolist()
