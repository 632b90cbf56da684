import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cggm.errors import UserError
from cggm.runs.config import ConfigReader, read_config, write_config
from tests.quantifiers import every


@dataclass(frozen=True)
class Training:
    """How to train.

    Args:
        lr: Learning rate, 100 % of it.
        betas: Momenta.
        milestones: Epochs at which the rate drops.
        warmup: Epochs.
    """

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    milestones: tuple[int, ...] = (10, 20)
    warmup: int | None = None


@dataclass(frozen=True)
class Method:
    """What balances."""

    name: str = "joint"
    arguments: dict[str, int | float | bool | str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration.

    Args:
        size: Size of a crop.
    """

    size: int
    cache: Path | None = None
    amp: bool = False
    device: Literal["cpu", "cuda"] | None = None
    names: list[str] = field(default_factory=lambda: ["flair", "t1"])
    encoder: str = "resnet101"
    training: Training = field(default_factory=lambda: Training(lr=0.2))
    method: Method = field(default_factory=Method)
    extra: dict[str, Any] = field(default_factory=dict)


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_read_config_merges_files_left_to_right_and_options_last(tmp_path):
    first = write(
        tmp_path, "size: 8\ntraining: {lr: 1e-3, warmup: 2}\nmethod: {arguments: {a: 1}}\n"
    )
    second = write(tmp_path, "training:\n  warmup: 3\nmethod: {arguments: {b: 2.5}}\n", "b.yaml")
    config = read_config(Config, [first, second], ["--size", "9", "--method.arguments.c", "true"])
    assert config.training == Training(lr=0.001, warmup=3)
    assert config.size == 9
    assert config.method.arguments == {"b": 2.5, "c": True}


def test_defaults_of_a_group_are_those_of_its_field():
    assert read_config(Config, [], ["--size=1"]).training.lr == 0.2


def test_values_get_the_types_of_the_schema(tmp_path):
    text = "size: 8\ncache: a/b\ntraining: {lr: 1, betas: [1, 0], milestones: []}\ndevice: cuda\n"
    config = read_config(Config, [write(tmp_path, text)])
    assert config.cache == Path("a/b")
    assert isinstance(config.training.lr, float)
    assert config.training.betas == (1.0, 0.0)
    assert config.training.milestones == ()
    assert config.device == "cuda"


@dataclass(frozen=True)
class Places:
    """Where things lie."""

    input: Path
    output: Path | None = Path("default")


@pytest.mark.parametrize(
    "name", ["#a", "&a", "~", "a: b", "[a]", "'a'", "a b\nü", "2024", "-", "a #b", " a "]
)
def test_a_path_is_taken_as_it_is(name):
    places = ConfigReader(Places).read(Places, ["--input", name, "--output", name])
    assert places == Places(Path(name), Path(name))
    assert ConfigReader(Places).read(Places, ["--input=null", "--output=null"]) == Places(
        Path("null"), None
    )


def test_bare_boolean_option_means_true():
    assert read_config(Config, [], ["--amp", "--size", "1"]).amp is True
    assert read_config(Config, [], ["--size=1", "--amp"]).amp is True
    assert read_config(Config, [], ["--amp", "false", "--size=1"]).amp is False
    with pytest.raises(UserError, match="--amp to be bool, but got 'maybe'"):
        read_config(Config, [], ["--amp", "maybe", "--size=1"])


def test_empty_file_and_empty_group_change_nothing(tmp_path):
    files = [write(tmp_path, "# nothing\n"), write(tmp_path, "training:\n", "b.yaml")]
    assert read_config(Config, files, ["--size=1"]) == Config(size=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("siz: 3", ["a.yaml", "`siz`", "Did you mean size?"]),
        ("training: {lrr: 3}", ["a.yaml", "`training.lrr`", "Did you mean training.lr?"]),
        ("milestone: [3]", ["`milestone`", "Did you mean training.milestones?"]),
        ("qqqq: 3", ["`qqqq`", "Known keys: size, cache"]),
        ("size: big", ["a.yaml", "size", "int", "'big'"]),
        ("size: 2.5", ["size", "int", "2.5"]),
        ("size: null", ["size", "int", "None"]),
        ("encoder: no", ["encoder", "str", "False"]),
        ("training: {betas: [1]}", ["training.betas", "tuple[float, float]", "[1]"]),
        ("device: gpu", ["device", "Literal['cpu', 'cuda']", "gpu"]),
        ("names: [1]", ["names", "list[str]"]),
        ("training: 3", ["a.yaml", "`training`", "3"]),
        ("- 3", ["a.yaml", "the file", "[3]"]),
        ("size: 3\n  a: 4", ["a.yaml, line 2"]),
        ("size: !!python/object/apply:os.getcwd []", ["a.yaml, line 1", "python/object"]),
    ],
)
def test_faulty_file_is_refused_by_name(tmp_path, text, expected):
    with pytest.raises(UserError) as caught:
        read_config(Config, [write(tmp_path, text)], ["--size=1"])
    assert every(part in str(caught.value) for part in expected), str(caught.value)


def test_missing_file_and_binary_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"c\.yaml: No such file"):
        read_config(Config, [tmp_path / "c.yaml"])
    (tmp_path / "d.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"d\.yaml"):
        read_config(Config, [tmp_path / "d.yaml"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--siz", "3"], ["--siz", "Did you mean --size?"]),
        (["--training.lrr=3"], ["--training.lrr", "Did you mean --training.lr?"]),
        (["--lr", "3"], ["--lr", "Did you mean --training.lr?"]),
        (["--qqqq"], ["--qqqq", "--help"]),
        (["--size", "big"], ["--size", "int", "'big'"]),
        (["--size"], ["--size"]),
        (["3"], ["3"]),
        ([], ["Missing --size"]),
        (["--size=1", "--training.betas", "[a,b]"], ["--training.betas", "tuple[float, float]"]),
        (["--size=1", "--training", "x"], ["--training"]),
    ],
)
def test_faulty_option_is_refused(argv, expected):
    with pytest.raises(UserError) as caught:
        read_config(Config, [], argv)
    assert every(part in str(caught.value) for part in expected), str(caught.value)


def test_configuration_neither_imports_nor_calls_anything(tmp_path, monkeypatch):
    mark = tmp_path / "imported"
    source = f"open({str(mark)!r}, 'w').close()\nclass Thing: pass\n"
    write(tmp_path, source, "forbidden_fruit.py")
    monkeypatch.syspath_prepend(tmp_path)
    spec = "{class_path: forbidden_fruit.Thing, init_args: {}}"
    config = read_config(Config, [write(tmp_path, f"extra: {{a: {spec}}}")], ["--size=1"])
    assert config.extra["a"]["class_path"] == "forbidden_fruit.Thing"
    with pytest.raises(UserError):
        read_config(Config, [write(tmp_path, f"training: {spec}")], ["--size=1"])
    assert "forbidden_fruit" not in sys.modules
    assert not mark.exists()


words = st.text("abcxyz_-./ #:'\"é", min_size=1).filter(lambda s: s.strip() == s)
paths = words.map(lambda s: Path("data") / s.lstrip("/"))
numbers = st.floats(allow_nan=False)
configs = st.builds(
    Config,
    size=st.integers(-(2**40), 2**40),
    cache=st.none() | paths,
    amp=st.booleans(),
    device=st.sampled_from(["cpu", "cuda", None]),
    names=st.lists(words),
    encoder=st.text("abc0123.:-null ", min_size=1),
    training=st.builds(
        Training,
        lr=numbers,
        betas=st.tuples(numbers, numbers),
        milestones=st.lists(st.integers(), max_size=3).map(tuple),
        warmup=st.none() | st.integers(),
    ),
    method=st.builds(
        Method,
        name=words,
        arguments=st.dictionaries(st.text("abc", min_size=1), st.integers() | st.booleans()),
    ),
)


@settings(max_examples=25)
@given(config=configs)
def test_written_configuration_reads_back_equal(tmp_path_factory, config):
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    write_config(config, file)
    assert read_config(Config, [file]) == config


def test_help_shows_docstrings_and_the_defaults_of_files(tmp_path, capsys):
    reader = ConfigReader(Config, description="Trains.")
    reader.add_file(write(tmp_path, "training: {lr: 0.123}"))
    with pytest.raises(SystemExit) as caught:
        reader.read(Config, ["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for part in ("Trains.", "--training.lr", "100 % of it", "0.123", "--encoder", "resnet101"):
        assert part in text


@dataclass(frozen=True)
class Digits(Training):
    """A training on digits."""

    task: ClassVar[str] = "digits"


def test_a_configuration_names_its_task_and_no_other_script_takes_it(tmp_path):
    write_config(Digits(lr=0.5), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert text.startswith("task: digits\nlr: 0.5\n")
    assert read_config(Digits, [tmp_path / "config.yaml"]) == Digits(lr=0.5)
    with pytest.raises(UserError, match="Unknown option --task"):
        read_config(Digits, [], ["--task", "letters"])
    other = write(tmp_path, "task: letters\nlr: 0.5\n")
    with pytest.raises(UserError, match=r"a\.yaml: expected .* task digits, .* of 'letters'"):
        read_config(Digits, [other])
    assert read_config(Digits, [write(tmp_path, "lr: 0.5\n")]) == Digits(lr=0.5)
