"""Single bits flipped in the files of a checkpoint, and in the same weights as peers keep them."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.faults.files.bit_flips import flipped
from cggm.errors import UserError
from cggm.runs.checkpoints import RunProgress, load_checkpoint, save_checkpoint

Weights = dict[str, Tensor]
PEERS = ("torch.load, weights_only", "safetensors", "Ignite")


def measure(quick: bool) -> dict[str, Any]:
    count = 100 if quick else 1000
    with TemporaryDirectory() as name:
        ours = _flip_ours(Path(name) / "ours", count)
        peers = {
            peer: _flip_peer(file, read, count)
            for peer, (file, read) in _peers(Path(name), quick).items()
        }
    return {
        "bar": f"{count} of {count} refused with UserError, and the intact checkpoint loads",
        "holds": ours["refused"] == count,
        "figures": {"flips": count, "ours": dict(ours), **peers},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    wrong = "accepted with other weights"
    loaded = [f"{name} {counts[wrong]}" for name, counts in figures.items() if name in PEERS]
    return (
        "bit flips in checkpoints",
        f"{figures['ours']['refused']:,} of {figures['flips']:,} refused",
        f"loaded with other weights: {', '.join(loaded)}",
    )


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and its optimizer after one step."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 64)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def load_into_new(folder: Path) -> None:
    """What resuming does with the checkpoints of a folder."""
    model = network()
    load_checkpoint(folder, model, {"optimizer": torch.optim.Adam(model.parameters())})


def _flip_ours(folder: Path, count: int) -> Counter[str]:
    model, optimizer = trained()
    checkpoint = save_checkpoint(folder, model, {"optimizer": optimizer}, RunProgress(1, 1))
    load_into_new(folder)
    files = sorted(checkpoint.iterdir())
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for number in range(count):
        file = files[number % len(files)]
        data = file.read_bytes()
        file.write_bytes(flipped(data, int(rng.integers(8 * len(data)))))
        outcomes[_outcome(folder)] += 1
        file.write_bytes(data)
    load_into_new(folder)
    return outcomes


def _outcome(folder: Path) -> str:
    try:
        load_into_new(folder)
    except UserError:
        return "refused"
    except Exception as error:
        return f"raised {type(error).__name__}"
    return "accepted"


def _peers(folder: Path, quick: bool) -> dict[str, tuple[Path, Callable[[Path], Weights]]]:
    weights = trained()[0].state_dict()
    torch.save(weights, folder / "weights.pt")
    save_file(weights, folder / "weights.safetensors")
    peers: dict[str, tuple[Path, Callable[[Path], Weights]]] = {
        "torch.load, weights_only": (
            folder / "weights.pt",
            partial(torch.load, weights_only=True),
        ),
        "safetensors": (folder / "weights.safetensors", load_file),
    }
    return peers if quick else peers | {"Ignite": (_ignite_file(folder), ignite)}


def _ignite_file(folder: Path) -> Path:
    from ignite.engine import Engine
    from ignite.handlers import Checkpoint, DiskSaver

    save = Checkpoint({"model": trained()[0]}, DiskSaver(folder / "ignite", create_dir=True))
    save(Engine(lambda engine, batch: None))
    return next((folder / "ignite").iterdir())


def ignite(file: Path) -> Weights:
    """Weights as loaded by Ignite's handler."""
    from ignite.handlers import Checkpoint

    model = network()
    Checkpoint.load_objects({"model": model}, str(file))
    return model.state_dict()


def _flip_peer(file: Path, read: Callable[[Path], Weights], count: int) -> dict[str, int]:
    data = file.read_bytes()
    clean = {key: value.clone() for key, value in read(file).items()}  # no map of the file
    rng = np.random.default_rng(0)
    outcomes = Counter({"refused": 0, "accepted with other weights": 0})
    for _ in range(count):
        file.write_bytes(flipped(data, int(rng.integers(8 * len(data)))))
        try:
            outcomes[_verdict(read(file), clean)] += 1
        except Exception:
            outcomes["refused"] += 1
    return dict(outcomes)


def _verdict(found: Weights, clean: Weights) -> str:
    """Bits are compared, not numbers: a flip may make a NaN."""
    same = found.keys() == clean.keys() and all(
        found[key].dtype == clean[key].dtype
        and found[key].numpy().tobytes() == clean[key].numpy().tobytes()
        for key in clean
    )
    return "accepted with the same weights" if same else "accepted with other weights"
