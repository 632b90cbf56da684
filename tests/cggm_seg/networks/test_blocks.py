"""A torchvision that does not fit PyTorch is said in one line, with what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import torch
torch.__version__ = {version!r}
from importlib import metadata
real = metadata.version
metadata.version = lambda name: {version!r} if name == "torch" else real(name)
from cggm.runs import run
def main(argv):
    from cggm_seg.networks import MultiEncoderDeepLabV3Plus
raise SystemExit(run(main, []))
"""


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ("2.15.0", "pip install torch==2.15.0 torchvision\n"),
        (
            "2.15.0+cpu",
            "pip install torch==2.15.0+cpu torchvision "
            "--index-url https://download.pytorch.org/whl/cpu\n",
        ),
    ],
)
def test_what_to_install_is_said(tmp_path, version, command):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(version=version)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"built for torch {version}, but found torchvision 0." in ended.stderr
    assert "(operator torchvision::nms does not exist)" in ended.stderr
    assert ended.stderr.endswith(command)
