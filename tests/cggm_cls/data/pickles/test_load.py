import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cggm.errors import DataError
from cggm_cls.data.pickles.load import load_arrays
from tests.cggm_cls.hostile import PROTOCOLS, executing, harmful

SENTINEL = "executed"
HOSTILE = (*executing(SENTINEL), *harmful())


def same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
        assert found.flags.f_contiguous == expected.flags.f_contiguous
        assert found.flags.writeable
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


def genuine():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((7, 50, 20))
    arrays = {
        "vision": values.astype(np.float32),
        "audio": np.where(values > 2, -np.inf, values),
        "half": values.astype(np.float16),
        "fortran": np.asfortranarray(values),
        "transposed": values.transpose(2, 0, 1),
        "strided": values[::2, ::3],
        "labels": rng.uniform(-3, 3, (7, 1, 1)),
        "single": np.array(2.5),
        "classes": np.arange(7),
        "counts": np.arange(7, dtype=np.uint8),
        "swapped": np.arange(500, dtype=">f4"),
        "mask": values > 0,
        "id": np.array([[b"video", b"0.5", b"1.25"]] * 7),
        "annotations": np.array(["Neutral", "Positive", "\u00fcber"]),
        "empty": np.zeros((0, 50, 5), np.float32),
    }
    rest = {
        "raw_text": ["two words", "", "\u4e2d\u6587 and \U0001f600"],
        "ids": [("video", 1, 2.5), (b"video", None, True)],
        "nothing": {},
        "big": [2**63, -(2**31), 0, float("-inf"), b"", b"\xff\x00"],
        3: "a small integer as key",
    }
    shared = np.ones(3000, np.float32)
    return {"train": arrays, "valid": rest, "test": {"one": shared, "other": shared}}


def write(folder, data, name="mosi_data.pkl"):
    file = folder / name
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_genuine_files_load_bit_equal_to_pickle(tmp_path, protocol):
    file = write(tmp_path, pickle.dumps(genuine(), protocol))
    expected = pickle.loads(file.read_bytes())
    expected["train"]["swapped"] = expected["train"]["swapped"].astype("=f4")
    same(load_arrays(file), expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_spelling_of_numpy_1_loads(tmp_path, protocol):
    array = np.arange(600.0).reshape(20, 30)
    data = pickle.dumps([array], protocol)
    # Protocols above 3 state the length of the text that holds the name.
    for part in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + part, b"numpy.core." + part
        data = data.replace(bytes([len(new)]) + new, bytes([len(old)]) + old).replace(new, old)
    if data[2:3] == b"\x95":
        data = data[:2] + data[11:]
    assert b"_core" not in data
    same(load_arrays(write(tmp_path, data)), [array])


def test_pickle_of_python_2_loads_with_bytes_as_latin1(tmp_path):
    data = (
        b"\x80\x02}q\x00(U\x06visionq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray"
        b"\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02K\x01\x86cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01"
        b"\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80"
        b"\x3f\x00\x00\x00\xc0tbU\x02idq\x07]q\x08U\x03\xfcbaau."
    )
    loaded = load_arrays(write(tmp_path, data))
    same(loaded, {"vision": np.array([[1], [-2]], np.float32), "id": ["\u00fcba"]})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_object_arrays_of_text_become_nested_lists(tmp_path, protocol):
    text = np.array([["a", b"b", None], ["a longer text", "", "a"]], object)
    content = {"rows": text, "fortran": np.asfortranarray(text), "none": np.empty((0, 3), object)}
    loaded = load_arrays(write(tmp_path, pickle.dumps(content, protocol)))
    assert loaded == {"rows": text.tolist(), "fortran": text.tolist(), "none": []}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_stray_numpy_scalars_become_those_of_python(tmp_path, protocol):
    scalars = [np.float32(0.1), np.int64(-3), np.bool(True), np.str_("a\u00fc"), np.bytes_(b"b")]
    scalars += [np.str_(""), np.bytes_(b"")]
    same(
        load_arrays(write(tmp_path, pickle.dumps(scalars, protocol))),
        [scalar.item() for scalar in scalars],
    )


def test_shared_arrays_stay_shared(tmp_path):
    loaded = load_arrays(write(tmp_path, pickle.dumps(genuine(), 4)))
    assert loaded["test"]["one"] is loaded["test"]["other"]


def test_pickle_itself_would_execute_the_payloads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentinel = Path(SENTINEL)
    for name, _, data in executing(SENTINEL):
        pickle.loads(data)
        assert sentinel.exists(), name
        sentinel.rmdir() if sentinel.is_dir() else sentinel.unlink()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What a process whose memory is limited makes of all hostile files, and its peak memory."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, (_, _, data) in enumerate(HOSTILE):
        (folder / f"{number}.pkl").write_bytes(data)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[4]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(len(HOSTILE))],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"folder": folder}


# Not ru_maxrss, which begins at what the parent process used.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))  # KiB
"""

LOAD_ALL = f"""{PEAK}
import json, pathlib, resource, sys
from cggm.errors import DataError
from cggm_cls.data.pickles.load import load_arrays

resource.setrlimit(resource.RLIMIT_AS, (300 * 2**20,) * 2)
messages = []
for number in range(int(sys.argv[1])):
    try:
        load_arrays(pathlib.Path(f"{{number}}.pkl"))
        messages.append("loaded")
    except DataError as error:
        messages.append(str(error))
print(json.dumps({{"messages": messages, "peak": peak()}}))
"""


@pytest.mark.parametrize("number", range(len(HOSTILE)), ids=[case[0] for case in HOSTILE])
def test_hostile_file_is_refused_by_name(outcomes, number):
    _, offender, _ = HOSTILE[number]
    message = outcomes["messages"][number]
    assert message.startswith(f"{number}.pkl, ")
    assert "Expected" in message
    assert offender in message
    assert len(message) < 400
    assert message.isprintable()


def test_no_hostile_file_runs_code_or_takes_memory(outcomes):
    assert len(HOSTILE) >= 60
    assert not (outcomes["folder"] / SENTINEL).exists()
    assert outcomes["peak"] < 200 * 1024  # KiB


def damaged(data, rng):
    """The file cut short, or with some of its bytes changed, inserted or removed."""
    data = bytearray(data)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    for place in rng.integers(len(data) - 3, size=rng.integers(1, 4)):
        if kind == 1:
            data[place] = rng.integers(256)
        elif kind == 2:
            data[place:place] = rng.bytes(3)
        else:
            del data[place : place + 3]
    return bytes(data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damaged_file_loads_or_is_refused_but_never_fails_otherwise(tmp_path, protocol):
    content = {
        "vision": np.arange(12, dtype=np.float32).reshape(3, 2, 2),
        "id": np.array(["a", "b", None], object),
        "labels": [1.5, -2, None, True, ("x", b"y")],
        "mean": np.float64(0.5),
        "swapped": np.arange(3, dtype=">i2"),
    }
    data = pickle.dumps(content, protocol)
    rng = np.random.default_rng(protocol)
    refused = 0
    for _ in range(150):
        file = write(tmp_path, damaged(data, rng))
        try:
            load_arrays(file)
        except DataError:
            refused += 1
    assert 50 < refused <= 150


def test_absent_file_and_folder_are_errors(tmp_path):
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(DataError, match="Expected a pickle, but it cannot be read"):
            load_arrays(path)


def test_memory_stays_near_the_size_of_the_file(tmp_path):
    array = np.random.default_rng(0).standard_normal((8000, 1000)).astype(np.float32)
    file = write(tmp_path, pickle.dumps({"train": {"vision": array}}, 4))
    command = f"""{PEAK}
from pathlib import Path
from cggm_cls.data.pickles.load import load_arrays
before = peak()
load_arrays(Path({str(file)!r}))
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) * 1024 < 1.3 * array.nbytes
