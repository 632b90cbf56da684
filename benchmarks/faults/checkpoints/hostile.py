"""Checkpoints with gadgets instead of weights or training state, behind digests that fit.

They are saved by our own code, which is made to write the gadget: no digest stands in the way.
The gadgets do no harm: the worst is a file in a temporary folder.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.faults.checkpoints.flips import ignite, load_into_new, trained
from benchmarks.faults.checkpoints.gadgets import hostile_files
from cggm.errors import UserError
from cggm.runs.checkpoints import RunProgress, save_checkpoint

_WEIGHTS_SHARE = 5  # one gadget in so many stands in for the weights
_PATIENCE = 0.5  # seconds for a process that a gadget started


def measure(quick: bool) -> dict[str, Any]:
    peers = {} if quick else {"torch.load, weights_only": _weights_only, "Ignite": ignite}
    with TemporaryDirectory() as name:
        ours = _attack(_load_ours, Path(name) / "ours")
        found = {peer: _attack(load, Path(name) / peer) for peer, load in peers.items()}
        believing = _attack(_believing, Path(name) / "believing")
    count = sum(ours["outcomes"].values())
    return {
        "bar": "50 refused with UserError, none executed, although a loader that believes pickles "
        "executes all of them",
        "holds": ours == {"executed": 0, "outcomes": {"UserError": count}}
        and believing["executed"] == count == 50,
        "figures": {"checkpoints": count, "ours": ours, **found, "torch.load": believing},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    count = figures["checkpoints"]
    executed = figures["torch.load"]["executed"]
    return (
        "checkpoints that would run code",
        f"{figures['ours']['outcomes'].get('UserError', 0)} of {count} refused",
        f"`torch.load` without `weights_only` runs {executed}",
    )


def _attack(load: Callable[[Path], object], folder: Path) -> dict[str, Any]:
    markers, scripts, files = (folder / name for name in ("markers", "scripts", "files"))
    for made in (markers, scripts, files):
        made.mkdir(parents=True)
    outcomes: Counter[str] = Counter()
    attacks = list(hostile_files(markers, scripts))
    for number, (_, _, content) in enumerate(attacks):
        file = files / f"{number}.pt"
        file.write_bytes(content)
        outcomes[_outcome(load, file)] += 1
    time.sleep(_PATIENCE)
    executed = sum(marker.exists() for _, marker, _ in attacks)
    return {"executed": executed, "outcomes": dict(outcomes)}


def _outcome(load: Callable[[Path], object], file: Path) -> str:
    try:
        load(file)
    except Exception as error:
        kind = UserError if isinstance(error, UserError) else type(error)
        return kind.__name__
    return "loaded"


def _load_ours(file: Path) -> None:
    content = file.read_bytes()
    folder = file.with_suffix("")
    in_weights = int(file.stem) % _WEIGHTS_SHARE == 0
    model, optimizer = trained()
    with (
        patch("cggm.runs.checkpoints.save.save_safetensors", lambda weights: content)
        if in_weights
        else patch.object(torch, "save", lambda state, stream: stream.write(content))
    ):
        save_checkpoint(folder, model, {"optimizer": optimizer}, RunProgress(1, 1))
    load_into_new(folder)


def _weights_only(file: Path) -> object:
    return torch.load(file, weights_only=True)


def _believing(file: Path) -> object:
    return torch.load(file, weights_only=False)
