"""The files of cases, and the names of predictions."""

import re
from pathlib import Path
from typing import Any

_ENDING = re.compile(r"(_flair|_t1ce|_t1|_t2|-t2f|-t1c|-t1n|-t2w)?\.nii(\.gz)?$")


def find_cases(folder: str, suffixes: list[str]) -> list[dict[str, list[str]]]:
    """The images of all cases in a folder and its subfolders, in the order of the channels.

    Args:
        folder: Where ``<case><suffix>.nii.gz`` or ``.nii`` lie.
        suffixes: One for each channel.

    Raises:
        FileNotFoundError: If there is no case, or a case lacks an image.
    """
    firsts = [*sorted(Path(folder).rglob(f"*{suffixes[0]}.nii*"))]
    if not firsts:
        raise FileNotFoundError(
            f"{folder}: expected files <case>{suffixes[0]}.nii.gz, but found none. "
            "Give the folder with --dataset_dir, other suffixes with --suffixes."
        )
    return [{"image": [str(_image(first, suffixes[0], s)) for s in suffixes]} for first in firsts]


def case_name(meta: dict[str, Any], _saver: object) -> dict[str, str]:
    """Name of a prediction: the case, without the suffix of its first image."""
    return {"subject": _ENDING.sub("", Path(meta["filename_or_obj"]).name)}


def _image(first: Path, own: str, suffix: str) -> Path:
    case, _, ending = first.name.rpartition(own)
    file = first.with_name(f"{case}{suffix}{ending}")
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: expected this image, but it does not exist. The network takes all channels: "
            "for a missing modality write an image of zeros on the grid of the others."
        )
    return file
