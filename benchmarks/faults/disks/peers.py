"""How peers fare that save a second time to a disk that fails."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from ignite.engine import Engine
from ignite.handlers import Checkpoint, DiskSaver

from benchmarks.faults.checkpoints.flips import trained
from benchmarks.faults.processes.forked import forked

Save = Callable[[Path, Callable[[], None]], None]


def losses(folder: Path, save: Save, strike: Callable[[], None], rounds: int) -> str:
    """How often no checkpoint is left that loads."""
    lost = 0
    for _ in range(min(rounds, 3)):  # nothing is random here
        with TemporaryDirectory(dir=folder) as name:
            target = Path(name)
            forked(lambda target=target: save(target, strike), folder / "log.txt")  # type: ignore[misc]
            lost += not any(_loads(file) for file in target.iterdir())
    return f"lost {lost} of {min(rounds, 3)}"


def _loads(file: Path) -> bool:
    try:
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


def _ignite(folder: Path, strike: Callable[[], None]) -> None:
    handler = Checkpoint({"model": trained()[0]}, DiskSaver(folder), n_saved=1)
    engine = Engine(lambda engine, batch: None)
    handler(engine)
    engine.state.iteration = 1
    strike()
    handler(engine)


def _torch_save(folder: Path, strike: Callable[[], None]) -> None:
    weights = trained()[0].state_dict()
    torch.save(weights, folder / "weights.pt")
    strike()
    torch.save(weights, folder / "weights.pt")


PEERS: dict[str, Save] = {"Ignite, n_saved=1": _ignite, "torch.save in place": _torch_save}
