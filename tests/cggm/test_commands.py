"""``cggm``: every script is a command, the same as the script, told and completed by its words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cggm
from cggm.commands import find_scripts, main, spoken
from cggm.commands.command import _extra_with

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(file.stem for file in (ROOT / "pipelines").glob("*.py"))


def call(*words, cwd=None, path=()):
    """The command as a process of its own."""
    places = os.pathsep.join(map(str, [ROOT, *path]))
    return subprocess.run(
        [sys.executable, "-m", "cggm", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": places},
        check=False,
    )


def test_every_script_is_a_command():
    assert sorted("_".join(words) for words in find_scripts()) == SCRIPTS
    shown = call("--help").stdout
    for script in SCRIPTS:
        assert f"\n  cggm {script.replace('_', ' ', 1)} " in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "Write report.html of a training run" in shown, "a line on what each does"


def test_help_answers_within_a_second():
    times = []
    for words in (["--help"], ["brats", "train", "--help"]):
        seconds = []
        for _ in range(3):
            before = os.times()
            assert call(*words).returncode == 0
            after = os.times()  # of the processor: what others do is no fault of ours
            user, system = after.children_user, after.children_system
            seconds.append(user - before.children_user + system - before.children_system)
        times.append(min(seconds))
    assert max(times) < 1


@pytest.mark.parametrize("words", [["mosi", "train"], ["brats", "train", "--config", "paper"]])
def test_a_command_is_its_script(words, tmp_path):
    first, second, *options = words
    script = [sys.executable, str(ROOT / "pipelines" / f"{first}_{second}.py")]
    by_hand = subprocess.run(
        [*script, *options, "--print_config"], capture_output=True, text=True, check=True
    )
    command = call(*words, "--print_config", cwd=tmp_path)
    assert command.stdout == by_hand.stdout
    assert command.stdout.startswith(f"task: {first}\n")
    assert ("dice: foreground" in command.stdout) == ("paper" in words)


def test_help_and_errors_speak_of_commands():
    shown = call("brats", "evaluate", "--help").stdout
    assert shown.startswith("usage: cggm brats evaluate [")
    assert "\ncggm brats evaluate --predictions OUT --reference CASES\n" in shown
    told = call("report", "--help").stdout
    assert "JSON file of cggm brats evaluate" in " ".join(told.split())
    assert "pipelines" not in shown + told
    text = "python pipelines/brats_infer.py or brats_infer.py, of /own/compare.py"
    assert spoken(text) == text, "a script that is called by hand keeps its name"


def test_a_first_word_may_be_left_out_where_one_command_has_the_second():
    assert call("demo", "--help").stdout.startswith("usage: cggm brats demo [")
    several = call("train", "--help")
    assert several.returncode == 2
    assert "Unknown command `cggm train`" in several.stderr


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["brats"], 0, "cggm brats infer"),
        (["brats", "--help"], 0, "cggm brats infer"),
        (["--version"], 0, f"cggm {cggm.__version__}\n"),
        (["brat", "trian"], 2, "Did you mean `cggm brats train`? See cggm --help."),
        (["comprae", "--task", "mosi"], 2, "Did you mean `cggm compare`?"),
        (["brats", "learn"], 2, "Unknown command `cggm brats learn`."),
        (["--completion", "tcsh"], 2, "Expected bash, zsh or fish behind --completion"),
    ],
)
def test_what_is_asked_of_the_command_itself(words, code, expected, capsys):
    assert main(words) == code
    shown = capsys.readouterr()
    assert expected in (shown.err if code else shown.out)
    assert shown.err.count("\n") == (1 if code else 0)


def test_exit_codes_are_those_of_the_script(tmp_path):
    ended = call("brats", "verify", "--data", tmp_path / "none")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")


def test_a_package_that_is_missing_is_said_in_one_line(tmp_path):
    (tmp_path / "jsonargparse").mkdir()
    (tmp_path / "jsonargparse" / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module named jsonargparse', name='jsonargparse')"
    )
    ended = call("mosi", "train", path=[tmp_path])
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: cggm mosi train: the package 'jsonargparse' is not installed. Install what "
        'commands need: pip install "cggm[seg,cls]".\n'
    )


@pytest.mark.parametrize(
    ("module", "extra"),
    [("transformers", "features"), ("onnx", "export"), ("tqdm", "seg,cls"), ("PIL", "seg,cls")],
)
def test_the_extra_that_has_what_lacks_is_told(monkeypatch, module, extra):
    needs = [
        *("tqdm>=4; extra == 'run'", "tqdm>=4; extra == 'export'", "onnx>=1; extra == 'dev'"),
        *("onnxruntime>=1.32; extra == 'runtime'", "onnx>=1.23; extra == 'export'"),
        "transformers>=5; extra == 'features'",
    ]
    monkeypatch.setattr("cggm.commands.command.requires", lambda _: needs)
    assert _extra_with(module) == extra


def test_packages_mount_commands(tmp_path):
    distribution = tmp_path / "mine-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[cggm.commands]\nmine = my_command:main\n")
    (tmp_path / "my_command.py").write_text(
        "from cggm.commands import called_as\n"
        "def main(argv):\n    print(called_as(), argv)\n    return 7\n"
    )
    ended = call("mine", "now", "--x", "1", path=[tmp_path])
    assert (ended.returncode, ended.stdout) == (7, "cggm mine ['now', '--x', '1']\n")
    assert "cggm mine              From my_command.\n" in call("--help", path=[tmp_path]).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["br"], ["brats"]),
        (["brats", "ver"], ["verify"]),
        (["compare", "--dev"], ["--device"]),
        (["brats", "train", "--optimizer.lr_p"], ["--optimizer.lr_peak"]),
        (["brats", "train", "--method", "cggm_d"], ["cggm_direction"]),
        (["brats", "train", "--device", ""], ["cpu", "cuda", "mps"]),
        (["brats", "evaluate", "--rule", ""], ["brats2021", "brats2023"]),
        (["demo", "--held"], ["--held_out"]),
        (["brats", "train", "--data", ""], []),  # the shell's own files
    ],
)
def test_words_are_completed(words, expected):
    assert call("--complete", *words).stdout.split() == expected


def test_bash_completes(tmp_path):
    command = tmp_path / "cggm"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m cggm "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(cggm --completion bash)"\n'
        "COMP_WORDS=(cggm brats tr); COMP_CWORD=2; _cggm_complete; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(cggm report --); COMP_CWORD=2; _cggm_complete; echo ${COMPREPLY[@]}\n"
        "complete -p cggm"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    shown = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={"PATH": path}, check=True
    )
    words, options, registered = shown.stdout.splitlines()
    assert words == "train"
    assert options == "--help --run --tasks"
    assert "-F _cggm_complete cggm" in registered
