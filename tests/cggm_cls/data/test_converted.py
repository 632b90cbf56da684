import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cggm.errors import DataError, UserError
from cggm_cls.data.converted import Source, open_converted, read_store, store_matches, write_store
from cggm_cls.data.pickles.load import load_arrays
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData
from tests.disk import file_size_limit

SPLITS = {"train": 6, "valid": 3, "test": 4}
FILES = ("ids.json", "manifest.json", "test.safetensors", "train.safetensors", "valid.safetensors")


def task_data(content, *, classes=None):
    splits = {}
    for name, count in SPLITS.items():
        inputs = {}
        for modality in ("vision", "audio"):  # not in alphabetical order
            values = torch.from_numpy(content[name][modality])
            offsets = torch.arange(count + 1) * (len(values) // count)
            inputs[modality] = RaggedSequences(values, offsets)
        target = torch.from_numpy(content[name]["labels"])
        ids = [f"{name} \u00fc {number}" for number in range(count)]
        splits[name] = SequenceDataset(inputs, target.long() if classes else target, ids)
    return TaskData(
        **splits, classes=classes, digest="d" * 64, simulated=True, notes=("3 values were -inf.",)
    )


def read(file):
    return task_data(load_arrays(file))


def content(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "vision": rng.standard_normal((count * 5, 4)).astype(np.float32),
            "audio": rng.standard_normal((count * 2, 3)).astype(np.float16),
            "labels": rng.uniform(-3, 3, count).astype(np.float32),
        }
        for name, count in SPLITS.items()
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data" / "mosi_data.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(content(), 4))
    return path


@pytest.fixture
def store(file):
    open_converted(file, None, read)
    return file.with_name("mosi_data.pkl.converted")


def refuse(file):
    raise AssertionError(f"{file} was read again")


def check_same(found, expected):
    for name in SPLITS:
        one, other = getattr(found, name), getattr(expected, name)
        assert list(one.inputs) == list(other.inputs) == ["vision", "audio"]
        assert list(one.ids) == list(other.ids)
        pairs = [(one.target, other.target)]
        for modality, sequences in one.inputs.items():
            pairs.append((sequences.values, other.inputs[modality].values))
            pairs.append((sequences.offsets, other.inputs[modality].offsets))
        for tensor, wanted in pairs:
            assert tensor.dtype == wanted.dtype
            assert torch.equal(tensor, wanted)
    for name in ("classes", "digest", "simulated", "notes"):
        assert getattr(found, name) == getattr(expected, name)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_first_use_converts_and_says_so_and_later_ones_do_not(file, capsys):
    check_same(open_converted(file, None, read), task_data(content()))
    assert f"converting {file} (0.0 MB) to {file}.converted, once\n" == capsys.readouterr().out
    check_same(open_converted(file, None, refuse), task_data(content()))
    assert capsys.readouterr().out == ""


def test_store_holds_the_named_files_and_nothing_is_left_beside_it(file, store):
    assert sorted(path.name for path in store.iterdir()) == sorted(FILES)
    assert sorted(file.parent.iterdir()) == [file, store]
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["source"]["name"] == "mosi_data.pkl"
    assert manifest["samples"] == SPLITS
    assert manifest["modalities"] == {"vision": 4, "audio": 3}
    assert manifest["simulated"] is True


@pytest.mark.parametrize("classes", [None, 4])
def test_round_trip_is_bit_equal(file, tmp_path, classes):
    data = task_data(content(), classes=classes)
    write_store(tmp_path / "store", data, Source.of(file))
    check_same(read_store(tmp_path / "store"), data)


def test_values_are_mapped_and_not_read_into_memory(file, store):
    values = read_store(store).train.inputs["vision"].values
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [
        [int(part, 16) for part in line.split()[0].split("-")]
        for line in maps
        if line.endswith(str(store / "train.safetensors"))
    ]
    assert any(start <= values.data_ptr() < end for start, end in ranges)


def test_pickle_is_opened_no_more_after_conversion(file, store):
    command = f"""
import json, sys
from pathlib import Path

opened = []

def note(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))

sys.addaudithook(note)
from cggm_cls.data.converted import open_converted

open_converted(Path({str(file)!r}), None, None)
print(json.dumps(opened))
print("cggm_cls.data.pickles.load" in sys.modules)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    opened, unpickler = done.stdout.splitlines()
    assert str(store / "manifest.json") in json.loads(opened)
    assert str(file) not in json.loads(opened)
    assert unpickler == "False"


def test_pickle_replaced_by_hostile_one_of_same_size_and_time_is_not_read(file, store, tmp_path):
    sentinel, found = tmp_path / "executed", file.stat()
    hostile = f"cos\nsystem\n(Vtouch {sentinel}\ntR.".encode()
    file.write_bytes(hostile.ljust(found.st_size))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    check_same(open_converted(file, None, refuse), task_data(content()))
    assert not sentinel.exists()


def test_store_alone_suffices_once_the_pickle_is_gone(file, store):
    file.unlink()
    check_same(open_converted(file, None, refuse), task_data(content()))
    check_same(open_converted(store, None, refuse), task_data(content()))
    check_same(open_converted(file, store, refuse), task_data(content()))


def test_touched_or_copied_pickle_still_matches(file, store):
    os.utime(file, (1, 1))
    check_same(open_converted(file, None, refuse), task_data(content()))
    copy = file.with_name("copy.pkl")
    copy.write_bytes(file.read_bytes())
    check_same(open_converted(copy, store, refuse), task_data(content()))


@pytest.mark.parametrize("grow", [b"", b"more"])
def test_changed_pickle_is_refused_until_its_store_is_deleted(file, store, grow):
    other = pickle.dumps(content(seed=1), 4) + grow
    file.write_bytes(other)
    os.utime(file, (1, 1))
    assert not store_matches(store, file)
    with pytest.raises(UserError, match=r"made from another file \(mosi_data.pkl, .*--store"):
        open_converted(file, None, refuse)
    check_same(open_converted(file, file.parent / "other", read), task_data(content(seed=1)))
    check_same(read_store(store), task_data(content()))


def test_store_option_puts_the_store_elsewhere(file, tmp_path):
    store = tmp_path / "new" / "store"
    open_converted(file, store, read)
    assert list(file.parent.iterdir()) == [file]
    check_same(open_converted(file, store, refuse), task_data(content()))


def test_folder_of_other_files_is_refused_and_kept(file, tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files.*--store"):
        open_converted(file, other, refuse)
    assert [path.name for path in other.iterdir()] == ["chapter.tex"]


def test_existing_store_is_never_overwritten(file, store):
    with pytest.raises(UserError, match="holds other files"):
        write_store(store, task_data(content(seed=1)), Source.of(file))
    check_same(read_store(store), task_data(content()))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 9, 150, -9])
def test_flipped_bit_is_refused(store, name, place):
    flip(store / name, place)
    with pytest.raises(DataError, match=rf"{name}: Expected a converted copy as it was written"):
        read_store(store)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_refused(store, name):
    path = store / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{name}: Expected a converted copy"):
        read_store(store)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(store, name):
    (store / name).unlink()
    with pytest.raises(DataError, match="Expected a converted copy"):
        read_store(store)


def test_files_of_two_stores_do_not_mix(file, store, tmp_path):
    write_store(tmp_path / "other", task_data(content(seed=1)), Source.of(file))
    (tmp_path / "other" / "test.safetensors").replace(store / "test.safetensors")
    with pytest.raises(DataError, match=r"test.safetensors: .*content was changed"):
        read_store(store)


def test_store_of_another_version_is_refused(store):
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="version 99 instead of"):
        read_store(store)


def test_folder_without_store_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no manifest\.json"):
        open_converted(tmp_path, None, refuse)


def test_absent_pickle_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"absent\.pkl: Expected a file"):
        open_converted(tmp_path / "absent.pkl", None, refuse)
    assert list(tmp_path.iterdir()) == []


def test_bad_pickle_leaves_nothing(file):
    file.write_bytes(b"cos\nsystem\n(Vtrue\ntR.")
    with pytest.raises(DataError, match=r"os\.system"):
        open_converted(file, None, read)
    assert list(file.parent.iterdir()) == [file]


def test_folder_that_cannot_be_written_names_the_option_before_reading(file, tmp_path):
    with pytest.raises(UserError, match=r"cannot be kept there.*with --store"):
        open_converted(file, tmp_path / "data" / "mosi_data.pkl" / "store", refuse)


def test_full_disk_names_the_option_and_leaves_nothing(file):
    with file_size_limit(300), pytest.raises(UserError, match=r"Expected room in .* --store"):
        open_converted(file, None, read)
    assert list(file.parent.iterdir()) == [file]


def test_killed_conversion_leaves_no_store_and_the_next_one_succeeds(file):
    command = f"""
import os, signal
from pathlib import Path
from cggm_cls.data import converted as stored
from cggm_cls.data.converted import open_converted
from tests.cggm_cls.data.test_converted import read

def die(path, data):
    os.kill(os.getpid(), signal.SIGKILL)

stored.write_json = die  # after the splits, before identifiers and manifest
open_converted(Path({str(file)!r}), None, read)
"""
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=Path(__file__).parents[3], check=False
    )
    assert done.returncode == -signal.SIGKILL
    store = file.with_name("mosi_data.pkl.converted")
    assert not store.exists()
    [draft] = file.parent.glob(".tmp-*")
    assert (draft / "test.safetensors").exists()
    check_same(open_converted(file, None, read), task_data(content()))
    assert sorted(file.parent.iterdir()) == [file, store]


def test_two_conversions_at_once_are_one(file):
    def read_late(path):
        open_converted(path, None, read)  # of another process
        return read(path)

    check_same(open_converted(file, None, read_late), task_data(content()))
    assert len([*file.parent.iterdir()]) == 2


def test_several_views_are_refused(file, tmp_path):
    data = task_data(content())
    inputs = {"text": RaggedSequences(torch.zeros(12, 2), torch.arange(13))}
    views = SequenceDataset(inputs, torch.zeros(6), ["a"] * 6, views={"text": 2})
    with pytest.raises(ValueError, match="one view"):
        write_store(
            tmp_path / "store",
            TaskData(views, data.valid, data.test, None, "d"),
            Source.of(file),
        )
    assert not (tmp_path / "store").exists()
