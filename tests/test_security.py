"""Configurations and data run no code, name no file outside their folder, and pins are kept."""

import ast
import hashlib
import importlib.metadata
import json
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cggm.errors import DataError, UserError
from cggm.methods import build_balancer
from cggm.runs.config import read_config
from cggm_cls.data.food101.store import FORMAT, MANIFEST, SAMPLES, open_features
from cggm_cls.data.iemocap.hdf5 import open_arrays
from cggm_seg.data.cases import find_cases
from cggm_seg.networks.encoders import ModalityEncoder
from cggm_seg.training.config import BratsConfig
from pipelines.mosi_train import MosiConfig
from tests.cggm_seg.nifti import write_case

ROOT = Path(__file__).parents[1]
PACKAGES = ("cggm", "cggm_seg", "cggm_cls", "pipelines")
ACT = "open('ran', 'w').close()"
TAGS = (
    f'!!python/object/apply:builtins.exec ["{ACT}"]',
    f'!!python/object/new:type {{args: ["x", [], {{}}], state: {{x: "{ACT}"}}}}',
    "!!python/name:os.system",
    "!!python/module:os",
)
# Text that other configuration systems obey: jsonargparse, Hydra, MONAI's bundles, OmegaConf.
OBEYED = (
    {"class_path": "builtins.exec", "init_args": {"source": ACT}},
    {"_target_": "builtins.exec", "source": ACT},
    {"act": f"$exec({ACT!r})"},
    {"act": "${oc.env:HOME}"},
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, in which nothing must appear."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "ran").exists()


def written(folder, text):
    file = folder / "config.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("schema", [BratsConfig, MosiConfig])
@pytest.mark.parametrize("tag", TAGS)
def test_tags_of_yaml_are_refused(tag, schema, here):
    with pytest.raises(UserError, match="expected plain YAML"):
        read_config(schema, [written(here, f"max_epochs: {tag}\n")])


@pytest.mark.parametrize("value", OBEYED)
def test_what_others_obey_stays_text(value, here):
    text = json.dumps({"max_epochs": 1, "balancer": {"settings": {"rho": value}}})
    config = read_config(BratsConfig, [written(here, text)])
    assert config.balancer.settings == {"rho": value}


@pytest.mark.parametrize("value", OBEYED)
def test_a_group_takes_no_class(value, here):
    for key in ("network", "optimizer"):
        text = json.dumps({"max_epochs": 1, key: value})
        with pytest.raises(UserError, match="unknown key"):
            read_config(BratsConfig, [written(here, text)])


@pytest.mark.parametrize("name", ["os.system", "builtins.exec", "cggm.trials.Trials", "__import__"])
def test_a_method_is_one_of_the_package(name, here):
    with pytest.raises(UserError):
        build_balancer(name, {}, {})


@pytest.mark.parametrize("name", ["tu-hf-hub:timm/resnet18", "tu-local-dir:/tmp"])
def test_an_encoder_is_never_fetched(name):
    with pytest.raises(UserError, match="place to fetch an encoder from"):
        ModalityEncoder(name, 8, 8, (1, 2, 3), 0.0)


def test_no_source_calls_what_runs_code_from_files():
    assert not [found for file in sources() for found in dangerous(file)]


def sources():
    return [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]


def dangerous(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe = {
            "torch.load": options.get("weights_only") != "True",
            "np.load": options.get("allow_pickle", "False") != "False",
            "subprocess.run": "shell" in options,
            "subprocess.Popen": "shell" in options,
        }
        banned = r"(eval|exec|compile|__import__|pickle\.loads?|yaml\.(unsafe_)?load|os\.system)"
        if unsafe.get(name) or re.fullmatch(banned, name):
            yield f"{file}:{node.lineno}: {name}"


@pytest.mark.parametrize("hostile", ["..", "..\\..\\x", "-rf", "a b;id", "$(id)", "a\nb"])
def test_predictions_of_hostile_names_stay_in_their_folder(hostile, tmp_path):
    write_case(tmp_path, "good", shape=(16, 16, 8))
    for part in ("flair", "t1", "t1ce", "t2"):
        source = tmp_path / "good" / f"good_{part}.nii.gz"
        (tmp_path / f"{hostile}_{part}.nii.gz").write_bytes(source.read_bytes())
    cases, _ = find_cases(tmp_path, labelled=False)
    output = Path("/output")
    for case in cases:
        file = Path(os.path.normpath(output / f"{case.id}.nii.gz"))
        assert file.parent == output, case.id
    assert "good" in {case.id for case in cases}


def test_symlinked_case_folders_are_read(tmp_path):
    write_case(tmp_path / "store", "a", shape=(16, 16, 8))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "store" / "a")
    [case], problems = find_cases(tmp_path / "data", labelled=True)
    assert (case.id, problems) == ("a", [])


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "a/../../secret"])
def test_modalities_of_a_feature_store_name_no_other_folder(name, tmp_path):
    folder = tmp_path / "store"
    (folder / "a").mkdir(parents=True)
    (folder / SAMPLES).write_text("{}")
    manifest = {
        "format": FORMAT,
        "key": {},
        "samples": hashlib.sha256(b"{}").hexdigest(),
        "modalities": {name: {"shape": [1, 1]}},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (tmp_path / "secret.lengths.bin").write_bytes(b"\1\0\0\0")
    (tmp_path / "secret.values.bin").write_bytes(b"\1\0")
    with pytest.raises(DataError, match="no name of a modality"):
        open_features(folder)


@pytest.mark.parametrize("path", [["..", "x"], ["a/b"], ["/x"], [""], ["."]])
def test_names_inside_hdf5_are_no_paths(path, tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as root:
        root["a/b"] = np.zeros((2, 3), np.float32)
        root["x"] = np.zeros((2, 3), np.float32)
    with open_arrays(tmp_path / "data.h5") as arrays, pytest.raises(DataError):
        arrays.read(path, width=3, steps=2)


def test_all_that_is_installed_for_the_project_is_pinned():
    pins = dict(line.split("==") for line in constraints())
    assert len(pins) > 100
    installed = {name: importlib.metadata.version(name) for name in requirements("cggm")}
    for unpinned in ("cggm", "setuptools"):  # itself, and what the environment brings along
        installed.pop(unpinned, None)
    assert len(installed) > 60
    assert {n: v for n, v in installed.items() if pins.get(n) != v} == {}


def constraints():
    lines = (ROOT / "constraints.txt").read_text().split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def requirements(name, extras=("seg", "cls", "features", "dev"), found=None):
    """Names of a distribution and of all that it requires, as far as installed."""
    found = {} if found is None else found
    if name in found and set(extras) <= found[name]:
        return found
    try:
        required = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return found
    found[name] = found.get(name, set()) | set(extras)
    for requirement in map(Requirement, required):
        wanted = [{"extra": extra} for extra in ("", *extras)]
        marker = requirement.marker
        if marker is None or any(marker.evaluate(environment) for environment in wanted):
            requirements(canonicalize_name(requirement.name), tuple(requirement.extras), found)
    return found
