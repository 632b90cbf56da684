"""Everything that finished trainings come to: tables, figures, and a page that shows them."""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from cggm.comparison import records as select
from cggm.comparison.figures import (
    SweepPoint,
    plot_differences,
    plot_gradients,
    plot_ranks,
    plot_sweep,
)
from cggm.comparison.plan import TASKS, Plan
from cggm.comparison.ranks import average_ranks
from cggm.comparison.records import Record
from cggm.comparison.rendering import RENDERERS, Table, to_markdown
from cggm.comparison.statistics import compare
from cggm.comparison.tables import (
    ABLATION,
    ablation_table,
    cost_table,
    heads_table,
    missing_table,
    performance_table,
    rank_table,
)
from cggm.runs.folder import RunFolder, machine, write_atomically

_SWEPT = {"rho": "rho", "lam": "lambda"}


def summarize(
    output: Path,
    plan: Plan,
    records: Sequence[Record],
    refused: Mapping[tuple[str, str], str],
) -> None:
    """Write ``tables/``, ``figures/`` and ``comparison.md`` of a comparison.

    Args:
        output: Its folder.
        plan: What is compared; trainings of earlier plans in the same folder are shown as well.
        records: Finished trainings.
        refused: Reasons by task and method.
    """
    page = [_head(plan, records)]
    for folder in ("tables", "figures"):
        (output / folder).mkdir(exist_ok=True)
    named = [r for r in records if ":" not in r.method]
    for task in select.tasks(records):
        for name, table in _tables(named, task).items():
            page.append(_keep(output, f"{task}-{name}", table))
        page += _figures(output, records, task)
    metrics = {task: TASKS[task].metrics[:1] for task in select.tasks(records)}
    if len(select.methods(named)) > 1:
        page.append(_keep(output, "ranks", rank_table(named, metrics)))
        file = output / "figures" / "ranks.png"
        plot_ranks(average_ranks(named, metrics), file, simulated=_simulated(records))
        page.append(_image(file))
    page += [_refusals(refused)] if refused else []
    write_atomically(output / "comparison.md", "\n\n".join(page).encode())
    print(f"\ntables, figures and {output / 'comparison.md'}")


def _head(plan: Plan, records: Sequence[Record]) -> str:
    simulated = " on SIMULATED data" if _simulated(records) else ""
    command = " ".join(sys.argv)
    lines = [
        f"# Comparison of balancing methods{simulated}",
        f"    {command}",
        f"{len(records)} trainings, seeds {plan.seeds[0]} to {plan.seeds[-1]}, "
        f"{datetime.now():%Y-%m-%d}, {machine()}.",
        "All methods have the same epochs, the same order of the data and the same initial weights "
        "per seed. Settings are those of `configs/methods`, published or default ones; none was "
        "tuned here. What a method does beside the training (teachers, estimates) is in its time.",
    ]
    return "\n\n".join(lines)


def _tables(records: Sequence[Record], task: str) -> dict[str, Table]:
    metrics = TASKS[task].metrics
    runs = select.of_task(records, task)
    found = set(select.methods(runs))
    tables = {"performance": performance_table(records, task, metrics)}
    if any(run.heads for run in runs):
        tables["heads"] = heads_table(records, task, metrics[0])
    if found >= {*ABLATION}:
        tables["ablation"] = ablation_table(records, task, metrics)
    if any(run.subsets for run in runs):
        tables["missing"] = missing_table(records, task, metrics[0])
    if "plain" in found:
        tables["cost"] = cost_table(records, task)
    return tables


def _figures(output: Path, records: Sequence[Record], task: str) -> list[str]:
    """Draw what there is to draw of a task; returns the images for the page."""
    folder, metric = output / "figures", TASKS[task].metrics[0]
    runs = select.of_task(records, task)
    simulated = _simulated(runs)
    files = []
    if len(select.methods(runs)) > 1 and "joint" in select.methods(runs):
        files.append(folder / f"{task}-differences.png")
        plot_differences(_without_sweep(runs), task, metric, files[-1])
    points = _sweep(runs, metric)
    if points:
        files.append(folder / f"{task}-sweep.png")
        plot_sweep(points, files[-1], metric=metric, simulated=simulated)
    vectors = _vectors(runs)
    if vectors:
        files.append(folder / f"{task}-gradients.png")
        rows = {name: np.concatenate(list(own.values())) for name, own in vectors.items()}
        labels = {name: _labels(own) for name, own in vectors.items()}
        plot_gradients(rows, labels, files[-1], 0, simulated=simulated)
    images = [_image(file) for file in files]
    return [*images, _agreement(vectors, task)] if vectors else images


def _sweep(runs: Sequence[Record], metric: str) -> list[SweepPoint]:
    differences = compare(list(runs), metric)
    points = []
    for method, difference in differences.items():
        name, *settings = method.split(":")
        key, _, value = (settings or [""])[0].partition("=")
        if name == "cggm" and len(settings) == 1 and key in _SWEPT:
            points.append(SweepPoint(_SWEPT[key], float(value), difference))
    if points and "cggm" in differences:
        default = differences["cggm"]
        points += [SweepPoint("rho", 1.0, default), SweepPoint("lambda", 0.1, default)]
    return points


def _vectors(runs: Sequence[Record]) -> dict[str, dict[str, np.ndarray]]:
    """Unit gradients that the first seed of each method kept, see :mod:`cggm.gradients`."""
    found = {}
    for run in sorted(runs, key=lambda r: r.seed, reverse=True):
        file = RunFolder(Path(run.path)).gradients
        if file.exists():
            with np.load(file, allow_pickle=False) as archive:
                found[run.method] = {name: _unit(archive[name]) for name in archive.files}
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(norms > 0, norms, 1)
    return unit


def _labels(vectors: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    pairs = {key: (key.partition(" ")[2], key.partition(" ")[0]) for key in vectors}
    return [pairs[key] for key, rows in vectors.items() for _ in rows]


def _agreement(vectors: Mapping[str, Mapping[str, np.ndarray]], task: str) -> str:
    """How far a head's gradients agree with those of its modality, and with those of the others."""
    lines = []
    for method, own in vectors.items():
        names = [key.removeprefix("head ") for key in own if key.startswith("head ")]
        for name in names:
            cosines = {
                other: float((own[f"head {name}"] * own[f"unimodal {other}"]).sum(1).mean())
                for other in names
            }
            others = [value for other, value in cosines.items() if other != name]
            rest = f", with the others' {np.mean(others):+.2f}" if others else ""
            lines.append(f"- {method}, {name}: {cosines[name]:+.2f}{rest}")
    head = (
        f"Mean cosine on {task} of a head's last-layer gradient with the network's when it sees "
        "that modality alone, batch by batch:"
    )
    return "\n".join([head, "", *lines])


def _keep(output: Path, name: str, table: Table) -> str:
    for suffix, render in RENDERERS.items():
        write_atomically(output / "tables" / f"{name}.{suffix}", render(table).encode())
    return to_markdown(table)


def _refusals(refused: Mapping[tuple[str, str], str]) -> str:
    lines = [f"- {task}, {method}: {reason}" for (task, method), reason in refused.items()]
    return "\n".join(["Methods that cannot serve a task:", "", *lines])


def _image(file: Path) -> str:
    return f"![{file.stem.replace('-', ', ')}](figures/{file.name})"


def _without_sweep(runs: Sequence[Record]) -> list[Record]:
    return [run for run in runs if ":" not in run.method]


def _simulated(records: Sequence[Record]) -> bool:
    return any(record.simulated for record in records)
