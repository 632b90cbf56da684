"""What is released: a wheel that needs no checkout, an sdist with its tests, one version."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

import cggm

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without an environment of its own, which would need a network."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run([*map(str, build)], capture_output=True, check=True)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's content, as site-packages has it."""
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def call(installed, cwd, *words):
    command = [sys.executable, "-m", "cggm", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_wheel_holds_commands_configurations_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("pipelines", "configs"):
        files = [
            f for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in str(f)
        ]
        assert files
        assert {f"cggm_commands/{f.relative_to(ROOT)}" for f in files} <= names
    for package in ("cggm", "cggm_seg", "cggm_cls", "cggm_nnunet"):
        assert f"{package}/py.typed" in names
        stubs = {str(f.relative_to(ROOT)) for f in (ROOT / package).rglob("*.pyi")}
        assert stubs
        assert stubs <= names
    tops = {name.partition("/")[0] for name in names}
    of_data = f"cggm-{cggm.__version__}.dist-info"
    assert tops == {"cggm", "cggm_seg", "cggm_cls", "cggm_nnunet", "cggm_commands", of_data}


def test_a_wheel_compares_methods_outside_of_a_checkout(installed, tmp_path):
    """The table of tasks, configurations, scripts and forked trainings, all from the wheel."""
    options = ["--quick", "--max_epochs", 1, "--seeds", 1, "--output", "comparison"]
    ended = call(installed, tmp_path, "compare", "--task", "mosi", "--methods", "joint", *options)
    assert ended.returncode == 0, ended.stderr
    [run] = (tmp_path / "comparison").rglob("environment.json")
    assert str(installed / "cggm_commands" / "pipelines") in run.read_text()
    report = call(installed, tmp_path, "report", run.parent)
    assert report.stdout == f"report   {run.parent / 'report.html'}\n"
    assert (tmp_path / "demo" / "mosi").exists(), "demo data lie where the user is"


def test_a_wheel_knows_its_configurations_by_name(installed, tmp_path):
    shown = call(installed, tmp_path, "brats", "train", "--config", "paper", "--print_config")
    config = yaml.safe_load(shown.stdout)
    paper = yaml.safe_load((ROOT / "configs" / "brats" / "paper.yaml").read_text())
    assert config["loss"]["dice"] == paper["loss"]["dice"]
    wrong = call(installed, tmp_path, "brats", "train", "--config", "papre")
    assert wrong.returncode == 2
    assert "comes along: demo, paper, quick, train.\n" in wrong.stderr


def test_description_has_no_link_that_an_index_cannot_follow(installed):
    [file] = installed.glob("*.dist-info/METADATA")
    text = message_from_string(file.read_text())
    description = text.get_payload()
    assert text["Description-Content-Type"] == "text/markdown"
    assert "# CGGM" in description
    assert f"## {cggm.__version__}" in description, "what is new"
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert links
    assert not [link for link in links if not link.startswith("https://")]


def test_sdist_has_what_its_tests_need(tmp_path):
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run([*map(str, build)], capture_output=True, check=True)
    [file] = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no repository to compare with")
    kept = {f for f in listed.stdout.splitlines() if not f.startswith((".ci/", ".pre-commit"))}
    assert len(kept) > 300
    assert kept <= names


def test_one_version():
    heading = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert heading[1] == cggm.__version__ == str(citation["version"])


def test_hashed_requirements_are_the_constraints():
    """requirements-hashed.txt is one tested set, with a digest of each file."""
    text = (ROOT / "requirements-hashed.txt").read_text()
    pinned = set(re.findall(r"^([\w.-]+==\S+) \\$", text, re.MULTILINE))
    constraints = set((ROOT / "constraints.txt").read_text().split())
    assert len(pinned) > 80
    assert pinned - constraints == set()
    assert text.count("--hash=sha256:") >= len(pinned)
    runtime = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["run"]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in runtime}
    assert names <= {pin.partition("==")[0] for pin in pinned}


def test_dockerfile_is_clean():
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
