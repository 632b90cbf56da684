"""Imports run one way: cggm <- cggm_seg, cggm_cls <- pipelines, and methods stand alone."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "cggm": {"cggm_seg", "cggm_cls", "pipelines", "monai", "segmentation_models_pytorch",
             "transformers", "nibabel", "albumentations", "nilearn"},
    "cggm_seg": {"cggm_cls", "pipelines", "transformers"},
    "cggm_cls": {"cggm_seg", "pipelines", "monai", "segmentation_models_pytorch"},
}  # fmt: skip


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", [p for p in FORBIDDEN if (ROOT / p).is_dir()])
def test_packages_import_downwards_only(package):
    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources(package)
        for name in imports(file)
        if name.partition(".")[0] in FORBIDDEN[package]
    }
    assert not found
    assert len(sources(package)) > 3


def test_methods_do_not_import_each_other():
    for file in (ROOT / "cggm" / "methods").glob("*.py"):
        if file.name not in ("__init__.py", "build.py"):
            found = [n for n in imports(file) if n.startswith("cggm.methods")]
            assert not [n for n in found if n != "cggm.methods._parts"], file


def test_hooks_are_registered_in_one_file():
    users = [
        str(file.relative_to(ROOT))
        for file in sources("cggm")
        if re.search(r"register_\w*hook", file.read_text())
    ]
    assert users == ["cggm/binding.py"]


def test_inference_knows_no_head():
    reached = (
        "inference.cohort",
        "inference.volume",
        "inference.slices",
        "inference.case",
        "inference.folder",
    )
    for name in (*reached, "networks.deeplab", "networks.encoders", "data.volumes"):
        file = ROOT / "cggm_seg" / f"{name.replace(chr(46), chr(47))}.py"
        assert not [n for n in imports(file) if "head" in n or n.startswith("cggm.methods")], file


def test_pipelines_hold_no_network_code():
    for file in sources("pipelines"):
        tree = ast.parse(file.read_text())
        assert len(file.read_text().splitlines()) <= 130, file
        top = {n.partition(".")[0] for node in tree.body for n in _top_imports(node)}
        assert not top & {"torch", "monai", "numpy", "matplotlib"}, f"{file}: slow --help"


def _top_imports(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
