import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cggm.errors import DataError, MethodRefusal, UserError
from cggm.runs.cli import (
    ERROR_FILE,
    check_problems,
    choose_device,
    parse_arguments,
    parse_options,
    parse_training,
    read_reported_error,
    report_problems,
    run,
)
from cggm.runs.config import write_config
from cggm.runs.options import RunOptions
from tests.cggm.runs.schema import Config, InferOptions, Training

ROOT = Path(__file__).parents[3]


@pytest.fixture
def configs(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "train.yaml").write_text("max_epochs: 75\ntraining: {lr: 0.01}\n")
    (tmp_path / "methods" / "ogm.yaml").write_text("balancer: ogm\ntraining: {lr: 0.03}\n")
    (tmp_path / "methods" / "cggm.yaml").write_text("balancer: cggm\n")
    return tmp_path


def parse(configs: Path, *argv: str):
    return parse_arguments(
        Config, "Train.", argv, defaults=configs / "train.yaml", methods=configs / "methods"
    )


def test_bytes_that_are_no_text_are_refused_with_the_locale_as_a_remedy(capsys):
    assert run(lambda _: None, ["--output", "a\udcfc"]) == 2
    expected = r"error: Expected arguments that are text in this locale, but got 'a\udcfc'. Use"
    assert capsys.readouterr().err.startswith(expected)


def test_a_machine_without_a_folder_for_temporary_files_is_told_at_once(capsys, monkeypatch):
    def nowhere():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    assert run(lambda _: 1, ["--output", "a"]) == 2
    assert capsys.readouterr().err.startswith("error: Expected a folder for temporary files, but ")
    assert run(lambda _: 0, ["--help"]) == 0


def test_sources_override_each_other_in_order(configs):
    own = configs / "own.yaml"
    own.write_text("training: {lr: 0.02}\nseed: 4\nbalancer: pmr\n")
    assert parse(configs)[0] == Config(max_epochs=75, training=Training(0.01))
    assert parse(configs, "--config", str(own))[0].training.lr == 0.02
    config, options = parse(configs, "--config", str(own), "--method", "ogm", "--max_epochs", "3")
    assert config == Config(max_epochs=3, seed=4, balancer="ogm", training=Training(0.03))
    assert options == RunOptions(config=own, method="ogm")
    assert parse(configs, "--method=ogm", "--training.lr=1", "--data", "d")[0] == Config(
        max_epochs=75, balancer="ogm", training=Training(1.0), data=Path("d")
    )


def test_demo_configuration_serves_where_no_data_is_given(configs):
    folder = configs / "mosi"
    folder.mkdir()
    (folder / "train.yaml").write_text("max_epochs: 30\n")

    def epochs(*argv):
        return parse_training(Config, "Train.", argv, folder)[0].max_epochs

    assert epochs() == 30
    (folder / "demo.yaml").write_text("max_epochs: 3\n")
    assert epochs() == 3
    assert epochs("--data", "d") == 30
    assert epochs("--max_epochs", "5") == 5
    assert parse_training(Config, "Train.", ["--method", "ogm"], folder)[0].balancer == "ogm"


def test_printed_configuration_can_be_run(configs, capsys):
    folder = configs / "mosi"
    folder.mkdir()
    (folder / "train.yaml").write_text("max_epochs: 30\n")
    (folder / "demo.yaml").write_text("max_epochs: 3\n")
    with pytest.raises(SystemExit) as ended:
        parse_training(Config, None, ["--method", "ogm", "--seed", "4", "--print_config"], folder)
    assert ended.value.code == 0
    printed = configs / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    config, _ = parse_training(Config, None, ["--config", str(printed)], folder)
    assert config == Config(max_epochs=3, seed=4, balancer="ogm", training=Training(0.03))


def test_resumed_run_brings_its_own_configuration(configs, tmp_path):
    run_folder = tmp_path / "run"
    (run_folder / "checkpoints").mkdir(parents=True)
    saved = Config(max_epochs=9, seed=5, balancer="agm", data=Path("x"), device="cpu")
    write_config(saved, run_folder / "config.yaml")
    assert parse(configs, "--resume", str(run_folder))[0] == saved
    resumed, options = parse(configs, "--resume", str(run_folder), "--max_epochs=10")
    assert (resumed.max_epochs, resumed.seed, options.resume) == (10, 5, run_folder)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--method", "cgm"], "Available: cggm, ogm."),
        (["--max_epoch", "3"], "Did you mean --max_epochs?"),
        (["--max_epochs", "0"], "at least 1"),
        (["--seed", "-1"], "2**32 - 1"),
        (["--seed", str(2**32)], "2**32 - 1"),
        (["--device", "tpu"], "--device"),
        (["--output", "a", "--resume", "b"], "got both"),
        (["--resume", "nowhere"], "nowhere: no such folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: No such file"),
    ],
)
def test_faulty_command_line_is_refused(configs, argv, expected):
    with pytest.raises(UserError) as caught:
        parse(configs, *argv)
    assert expected in str(caught.value)


def test_parse_options_requires_what_has_no_default():
    assert parse_options(InferOptions, "Predict.", ["--model", "m"]) == InferOptions(
        model=Path("m")
    )
    with pytest.raises(UserError, match="--model"):
        parse_options(InferOptions, "Predict.", [])


SCRIPT = """
import resource, signal, sys
from pathlib import Path
from cggm.runs.cli import parse_arguments, run
from cggm.runs.storage.files import write_atomically
from tests.cggm.runs.schema import Config

def main(argv):
    files = dict(defaults=Path("train.yaml"), methods=Path("methods"))
    config, _ = parse_arguments(Config, "Train.", argv, **files)
    if config.balancer == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write_atomically(Path("large.bin"), bytes(2000))
    if config.balancer == "interrupt":
        raise KeyboardInterrupt
    if config.balancer == "fault":
        raise ZeroDivisionError
    print(config.training.lr, "torch" in sys.modules)

if __name__ == "__main__":
    raise SystemExit(run(main))
"""


def call(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "script.py", *argv],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_script_succeeds_without_importing_torch(configs):
    done = call(configs, "--training.lr", "0.5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.5 False\n", "")


def test_help_answers_within_a_second(configs):
    durations = []
    for _ in range(3):
        before = os.times()
        done = call(configs, "--help")
        after = os.times()  # of the processor: what others do on this machine is no fault of ours
        user, system = after.children_user, after.children_system
        durations.append(user - before.children_user + system - before.children_system)
    assert done.returncode == 0
    for part in ("--data DIR", "--output RUN", "--method NAME", "--max_epochs N", "--training.lr"):
        assert part in done.stdout
    assert min(durations) < 1.0


@pytest.mark.parametrize(
    ("argv", "code", "expected"),
    [
        (
            ["--max_epoch", "3"],
            2,
            "error: Unknown option --max_epoch. Did you mean --max_epochs?\n",
        ),
        (["--balancer", "interrupt"], 130, "interrupted\n"),
    ],
)
def test_a_user_sees_one_message(configs, argv, code, expected):
    done = call(configs, *argv)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", expected)


def test_full_disk_is_reported_with_the_file_and_leaves_nothing(configs):
    done = call(configs, "--balancer", "full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: large.bin: ")
    assert "last checkpoint" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(configs.glob("*large.bin"))


def test_a_fault_of_the_program_keeps_its_traceback(configs):
    done = call(configs, "--balancer", "fault")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_run_passes_the_exit_code_on(capsys):
    assert run(lambda argv: 3, []) == 3
    assert run(lambda argv: None, []) == 0


def test_path_that_cannot_be_written_is_named(capsys):
    def main(argv):
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    assert run(main, []) == 2
    assert capsys.readouterr().err == (
        "error: x: Permission denied. Check the path and its permissions.\n"
    )


def test_run_says_when_a_disk_fails(capsys):
    def main(argv):
        raise OSError(errno.EIO, "Input/output error", "x")

    assert run(main, []) == 2
    assert capsys.readouterr().err.startswith("error: x: Input/output error. Earlier files")


def test_run_says_that_sockets_need_a_shorter_path(capsys):
    def main(argv):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("x" * 200)

    assert run(main, []) == 2
    assert "too long a path for sockets in it. Set TMPDIR to" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor", "x"), OSError("?")])
def test_run_lets_other_system_errors_through(error):
    def main(argv):
        raise error

    with pytest.raises(OSError, match=re.escape(str(error))):
        run(main, [])


def test_check_problems_ends_what_cannot_go_on():
    first, second = (DataError(name, None, "It is bad.", "Mend it.") for name in ("a", "b"))
    check_problems([], [], strict=True)
    check_problems(["good"], [first, second])
    check_problems(["good", "well"], [first], needed=2)
    with pytest.raises(DataError, match=r"^a: It is bad\. Mend it\.$"):
        check_problems(["good"], [first, second], strict=True)
    with pytest.raises(UserError) as caught:
        check_problems([], [first, second])
    assert str(caught.value) == (
        "Expected at least 1 good case, but found none among 2. "
        "The first problem: a: It is bad. Mend it."
    )
    with pytest.raises(UserError, match="at least 2 good cases, but found 1 among 2"):
        check_problems(["good"], [first], needed=2)


def test_device_is_the_one_asked_for():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_gpu_is_chosen_by_its_number(monkeypatch):
    chosen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(UserError, match=r"GPU cuda:2, but there is none\. Give one of cuda:0"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_what_names_no_device_is_refused(name):
    with pytest.raises(UserError, match="Expected device to be cpu, cuda, cuda:0 and so on"):
        choose_device(name)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="Apple's GPU is there")
def test_apples_gpu_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="Apple's GPU"):
        choose_device("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_missing_device_is_refused():
    with pytest.raises(UserError, match="Expected a CUDA device"):
        choose_device("cuda")


def test_report_problems_lists_every_case(capsys):
    report_problems([])
    assert capsys.readouterr().err == ""
    error = DataError("BraTS_1", Path("a_t1.nii.gz"), "The file is cut short.", "Copy it again.")
    report_problems([error])
    assert capsys.readouterr().err == (
        "1 case was skipped:\n  BraTS_1, a_t1.nii.gz: The file is cut short. Copy it again.\n"
    )
    report_problems([error, error])
    assert capsys.readouterr().err.startswith("2 cases were skipped:\n")
    report_problems(["a: no prediction."])
    assert capsys.readouterr().err == "1 case was skipped:\n  a: no prediction.\n"


@pytest.mark.parametrize("kind", [UserError, MethodRefusal])
def test_an_error_is_left_as_data_where_the_caller_asks_for_it(tmp_path, monkeypatch, kind):
    file = tmp_path / "error.json"
    monkeypatch.setenv(ERROR_FILE, str(file))

    def fail(argv):
        raise kind("PMR expects a layer.", "See configs/methods.")

    assert run(lambda argv: 0, []) == 0
    assert read_reported_error(file) is None
    assert run(fail, []) == 2
    told = read_reported_error(file)
    assert (type(told), str(told)) == (kind, "PMR expects a layer. See configs/methods.")
    file.write_text('{"kind": 3}')
    assert read_reported_error(file) is None


def test_an_error_is_told_once_by_the_first_rank_with_its_case(tmp_path, monkeypatch):
    file = tmp_path / "error.json"
    monkeypatch.setenv(ERROR_FILE, str(file))
    monkeypatch.setenv("RANK", "1")

    def fail(argv):
        raise DataError("A", Path("A_t1.nii"), "Expected a volume.", "Mend it.")

    assert run(fail, []) == 2
    assert not file.exists()
    monkeypatch.setenv("RANK", "0")
    assert run(fail, []) == 2
    assert str(read_reported_error(file)) == "A, A_t1.nii: Expected a volume. Mend it."


IN_LITTLE_MEMORY = """
import resource, sys
import numpy as np
import torch
from cggm.errors import DataError
from cggm.runs import run

torch.set_num_threads(1)

def read(argv):
    try:
        torch.empty(1 << 40)
    except RuntimeError as error:
        raise DataError("A", None, "Expected a volume, but it is damaged.", "Delete it.") from error

def convolve(argv):  # the compiler of oneDNN finds no room, and does not say so
    kept = []
    while True:
        kept.append(torch.empty(1 << 10))
        size = 8 + len(kept) % 50
        torch.nn.functional.conv2d(torch.empty(1, 3, size, size), torch.empty(4, 3, 3, 3))

works = {
    "torch": lambda argv: torch.empty(1 << 40),
    "numpy": lambda argv: np.empty(1 << 40),
    "python": lambda argv: bytearray(1 << 40),
    "misread": read,
    "convolution": convolve,
}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
raise SystemExit(run(works[sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("work", ["torch", "numpy", "python", "misread", "convolution"])
def test_too_little_memory_ends_in_one_line_with_a_remedy(work):
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, work]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert re.fullmatch(
        r"error: Expected more memory than there is: .+\. Earlier files and the last checkpoint "
        r"are intact\. .+ --batch_size\.\n",
        ended.stderr,
    ), ended.stderr


def test_a_fault_of_the_program_is_none_of_memory():
    with pytest.raises(RuntimeError, match="size"):
        run(lambda argv: torch.ones(2) @ torch.ones(3), [])
