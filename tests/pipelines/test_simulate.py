"""The command that writes a simulated cohort."""

import json

import pytest

from tests.pipelines.commands import call, refused


def test_command_writes_a_cohort_and_says_that_it_is_simulated(tmp_path, capsys):
    folder = tmp_path / "cohort"
    argv = ("--output", folder, "--lesions", "small", "--cases", 1, "--seed", 5)
    assert call("simulate", *argv) == 0
    assert capsys.readouterr().out == f"1 SIMULATED cases with small lesions in {folder}\n"
    settings = json.loads((folder / "cohort.json").read_text())
    expected = {"lesions": "small", "seed": 5, "shape": [120, 120, 78]}
    assert settings | expected == settings
    assert (folder / "DEMO_00000" / "DEMO_00000_t1ce.nii.gz").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "Missing --output"),
        (("--output", "x", "--cases", 0), "Expected cases of at least 1, but got 0"),
        (("--output", "x", "--seed", -1), "Expected seed of at least 0, but got -1"),
        (("--output", "x", "--lesions", "tiny"), "--lesions"),
    ],
)
def test_wrong_options_are_one_line_each(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "simulate", *argv)
    assert list(tmp_path.iterdir()) == []
