"""A release check: build wheel and sdist, install the wheel into nothing, use it elsewhere.

    make release-check

Ends with the first thing that does not hold. Everything lies in build/release, the files to publish
in dist. PyTorch is fetched or taken from uv's cache.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cggm

ROOT = Path(__file__).parent.parent
DIST, WORK = ROOT / "dist", ROOT / "build" / "release"
BIN = Path(sys.executable).parent
TINY = ["--quick", "--max_epochs", "1", "--seeds", "1"]
COMMANDS = (
    ["--version"],
    ["--help"],
    ["mosi", "train", "--max_epochs", "1", "--output", "run"],
    ["report", "run"],
    ["compare", "--task", "mosi", "--methods", "joint,cggm", *TINY, "--output", "comparison"],
    ["demo", "--cases", "6", "--held_out", "1", "--max_epochs", "1"],
)
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
    environment = WORK / "environment"
    call(sys.executable, "-m", "venv", "--without-pip", environment)
    [wheel] = DIST.glob("*.whl")
    call(
        *(BIN / "uv", "pip", "install", "--python", environment / "bin" / "python"),
        *("-c", ROOT / "constraints.txt", f"cggm[seg,cls] @ {wheel.as_uri()}"),
    )
    elsewhere = WORK / "elsewhere"
    elsewhere.mkdir()
    for words in COMMANDS:
        call(environment / "bin" / "cggm", *words, folder=elsewhere)
    check_source_distribution(next(DIST.glob("*.tar.gz")))
    print(f"\nready: {', '.join(file.name for file in files)}")


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
