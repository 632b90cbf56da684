import json
import tracemalloc

import pytest

from cggm.errors import UserError
from cggm.runs.storage.reading import parse_json, read_json, read_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join('*' + chr(97 + i) for _ in range(9))}]\n"
    for i in range(8)
)


def test_plain_files_are_read(tmp_path):
    file = tmp_path / "a"
    file.write_text("a: &rate 0.5\nb: [*rate, null, x]\nc: {d: true}\n")
    assert read_yaml(file) == {"a": 0.5, "b": [0.5, None, "x"], "c": {"d": True}}
    file.write_text('{"a": [1, null]}')
    assert read_json(file) == {"a": [1, None]}
    file.write_text("[1]")
    assert read_json(file, list) == [1]
    file.write_text("")
    assert read_yaml(file) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "too deep or too large"),
        ("a: " + "[" * 3000, "too deep or too large"),
        ("a: &a [*a]", "part of"),
        ("a: [1", "expected ',' or ']'"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_hostile_yaml_is_refused_in_little_memory(tmp_path, text, problem):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"config\.yaml.*expected plain YAML") as caught:
        read_yaml(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problem in str(caught.value)
    assert peak < 20e6
    assert len(str(caught.value)) < 500


def test_bytes_and_long_files_are_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="not a text file"):
        read_yaml(file)
    file.write_bytes(b"#" * (2**22 + 1))
    with pytest.raises(UserError, match="at most 4 MB"):
        read_yaml(file)
    with pytest.raises(UserError, match="No such file"):
        read_yaml(tmp_path / "absent")


def test_hostile_json_is_refused(tmp_path):
    file = tmp_path / "results.json"
    for text, problem in (
        ('{"a":' * 100_000, "nested too deeply"),
        ("{", "Expecting"),
        ("[]", r"an object in JSON, but got '\[\]'"),
        ("3", "an object"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            read_json(file)
    with pytest.raises(ValueError, match="nested"):
        parse_json("[" * 100_000)
    assert parse_json(json.dumps([1.5])) == [1.5]


def test_an_absent_file_is_empty_where_that_is_allowed(tmp_path):
    assert read_json(tmp_path / "absent", missing_ok=True) == {}
    assert read_json(tmp_path / "absent", list, missing_ok=True) == []
    with pytest.raises(UserError, match="No such file"):
        read_json(tmp_path / "absent")
