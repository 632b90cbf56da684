"""Numbers of loader workers and of ranks, which are to change nothing but the time it takes.

Each combination trains in real processes, which talk by Gloo, see rank_training.py for what such a
training must not have. Ranks share each batch; its items are compared by their content.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.faults.processes.child import in_child

_TOLERANCE = 1e-5  # of a weight
_LEAST_CHANGE = 100 * _TOLERANCE  # or equal weights would say nothing
_PEER = "MONAI's DataLoader and random transforms"


def measure(quick: bool) -> dict[str, Any]:
    figures = in_child(_measure, quick)
    settings = [figures[name] for name in figures if name.startswith("ranks")]
    return {
        "bar": "items of each step those of one process without workers; replicas bit-equal at "
        f"the end; every weight within {_TOLERANCE:g} of one process, float64, and the same bits "
        f"for any number of workers; training moves a weight by {_LEAST_CHANGE:g} at least",
        "holds": figures["most that training changes a weight"] >= _LEAST_CHANGE
        and all(
            found["steps with other items"] == found["replicas that differ"] == 0
            and found["largest difference of a weight"] <= _TOLERANCE
            and found["same bits as without workers"]
            for found in settings
        ),
        "figures": figures,
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    settings = {name: found for name, found in figures.items() if name.startswith("ranks")}
    other = sum(found["steps with other items"] for found in settings.values())
    differing = sum(found["replicas that differ"] for found in settings.values())
    farthest = max(found["largest difference of a weight"] for found in settings.values())
    peer = [int(text.split()[0]) for text in figures[_PEER].values()][1:]
    return (
        f"numbers of loader workers and ranks, {len(settings)} pairs",
        f"{other} steps with other items, {differing} replicas that differ, weights within "
        f"{farthest:.0e} of one process after {figures['steps']} steps",
        f"MONAI's random transforms differ in {min(peer)} to {max(peer)} steps",
    )


def _measure(quick: bool) -> dict[str, Any]:
    from benchmarks.faults.training.rank_training import BATCH_SIZE, RankTraining, Size

    worlds, counts = ((1, 2), (0, 2)) if quick else ((1, 2, 4), (0, 2))
    size = Size(3, 20, 2) if quick else Size(5, 50, 4)
    with TemporaryDirectory() as name:
        training = RankTraining(Path(name), size)
        found = {
            world: {workers: training.train(world, workers) for workers in counts}
            for world in worlds
        }
        peer = _peer(training, worlds, counts, size.epochs)
    one = found[1][0][0]
    return {
        "steps": size.steps,
        "cut": "for time: a half of the 200 steps and of the numbers of workers of earlier runs",
        "batch size": BATCH_SIZE,
        "most that training changes a weight": _farthest(one["after"], one["before"]),
        "median change of a weight": float((one["after"] - one["before"]).abs().median()),
        **{
            _name(world, workers): _compared(ranks, one, found[world][0][0])
            for world in worlds
            for workers, ranks in found[world].items()
        },
        _PEER: peer,
    }


def _compared(
    ranks: list[dict[str, Any]], one: dict[str, Any], without_workers: dict[str, Any]
) -> dict[str, Any]:
    weights = [rank["after"] for rank in ranks]
    return {
        "steps with other items": _differing(_items(ranks), _items([one])),
        "replicas that differ": sum(not weights[0].equal(other) for other in weights),
        "largest difference of a weight": _farthest(weights[0], one["after"]),
        "same bits as without workers": weights[0].equal(without_workers["after"]),
    }


def _peer(
    training: Any,  # noqa: ANN401
    worlds: tuple[int, ...],
    counts: tuple[int, ...],
    epochs: int,
) -> dict[str, str]:
    """Steps of the peer with other items, for one seed."""
    from benchmarks.faults.training.worker_peers import monai_batches

    slices = training.plain_slices()
    one = monai_batches(slices, 1, 0, epochs)
    return {
        _name(world, workers): f"{_differing(found, one)} of {len(one)} steps with other items"
        for world in worlds
        for workers in counts
        for found in [monai_batches(slices, world, workers, epochs)]
    }


def _name(world: int, workers: int) -> str:
    return f"ranks {world}, workers {workers}"


def _items(ranks: list[dict[str, Any]]) -> list[list[str]]:
    """What all ranks together learn from in each step, in no order."""
    steps = zip(*(rank["items"] for rank in ranks), strict=True)
    return [sorted(chain(*parts)) for parts in steps]


def _differing(found: list[list[str]], wanted: list[list[str]]) -> int:
    return sum(a != b for a, b in zip(found, wanted, strict=True))


def _farthest(weights: Any, others: Any) -> float:  # noqa: ANN401
    """Largest absolute difference of two weights."""
    return float((weights - others).abs().max())
