"""The tables of docs/results.md, and of nnU-Net's step in docs/benchmarks.md, from measured files.

python -m benchmarks.result_tables
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.known import proof
from benchmarks.known.answer import interval
from benchmarks.known.data import SCENARIOS, TASKS
from benchmarks.known.dense import FORMS
from cggm.comparison.missing import missing_table
from cggm.comparison.records import FinishedRun, read_records
from cggm.comparison.tables import heads_table, performance_table
from cggm.display import to_markdown
from cggm_cls import metrics  # noqa: F401  (registers accuracy)

RESULTS = Path(__file__).parent / "results"
LESIONS = ("large", "small", "balls")
SHORT = {"classification": "class.", "regression": "regr.", "segmentation": "segm."}


def main() -> None:
    steps = json.loads((RESULTS / "nnunet.json").read_text())
    print("\n\n".join([*all_tables(), nnunet_table(steps)]))


def all_tables() -> list[str]:
    """Real data, the benchmark with a known answer, and the cost of a step."""
    records = read_records(RESULTS / "compare_mfeat.jsonl")
    known = json.loads((RESULTS / "known_answer.json").read_text())["rows"]
    costs = json.loads((RESULTS / "methods.json").read_text())
    return [
        to_markdown(performance_table(records, "mfeat", ["acc"])).strip(),
        to_markdown(heads_table(records, "mfeat", "acc")).strip(),
        to_markdown(missing_table(records, "mfeat", "acc")).strip(),
        known_tables(known),
        lacking_at_test_table(read_records(RESULTS / "compare_missing.jsonl")),
        proof.table(json.loads((RESULTS / "guided.json").read_text())["rows"]),
        dense_table(json.loads((RESULTS / "dense.json").read_text())["rows"]),
        lesion_table(json.loads((RESULTS / "lesions.json").read_text())["rows"]),
        lacking_table(json.loads((RESULTS / "lacking.json").read_text())["rows"]),
        cost_table(costs),
    ]


def lacking_at_test_table(records: Sequence[FinishedRun]) -> str:
    """Accuracy with all modalities, and differences of the mean over all subsets, by seed."""
    tasks, methods = (
        list(dict.fromkeys(getattr(r, k) for r in records)) for k in ("task", "method")
    )
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for run in records:
        every = [100 * row["acc"] for row in (*run.subsets.values(), run.test)]
        found.setdefault((run.task, run.method), {})[run.seed] = every[-1], statistics.mean(every)
    heads = [f"{t}, {what}" for t in tasks for what in ("all", "mean", "- joint", "- mrd_uniform")]
    lines = [f"| accuracy | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
    for method in methods:
        cells = [c for task in tasks for c in lacking_cells(found, task, method)]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return "\n".join(lines)


def lacking_cells(
    found: Mapping[tuple[str, str], Mapping[int, tuple[float, float]]], task: str, method: str
) -> list[str]:
    """Means over seeds, and paired differences of the mean over subsets."""
    own = found.get((task, method), {})
    if not own:
        return ["-"] * 4
    cells = [f"{statistics.mean(row[i] for row in own.values()):.1f}" for i in range(2)]
    for other in ("joint", "mrd_uniform"):
        base = found[task, other]
        gaps = [own[seed][1] - base[seed][1] for seed in own.keys() & base.keys()]
        mean, half = interval(gaps)
        text = f"{mean:+.1f} ± {half:.1f}"
        bold = f"**{text}**" if abs(mean) > half else text
        cells.append("" if other == method else bold)
    return cells


def dense_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Dice of joint training and differences to it, all modalities there and one missing."""
    found = {(row["scenario"], row["form"]): dense_figures(row["scores"]) for row in rows}
    scenarios = [name for name in SCENARIOS if (name, "joint") in found]
    heads = [f"({name}) {what}" for name in scenarios for what in ("all", "one missing")]
    lines = [f"| Dice | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
    for form in FORMS:
        own = [found.get((name, form)) for name in scenarios]
        cells = []
        for name, figures in zip(scenarios, own, strict=True):
            pairs = zip(figures, found[name, "joint"], strict=True) if figures else ()
            cells += [dense_cell(*pair, form) for pair in pairs] or ["-", "-"]
        if any(own):
            lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def dense_figures(scores: Mapping[str, Sequence[float]]) -> tuple[list[float], list[float]]:
    """Dice with all modalities, and the mean of those without one, by seed."""
    missing = [own for key, own in scores.items() if key != "score"]
    return list(scores["score"]), [statistics.mean(own) for own in zip(*missing, strict=True)]


def dense_cell(own: Sequence[float], joint: Sequence[float], form: str) -> str:
    if form == "joint":
        return f"{statistics.mean(own):.1f}"
    mean, half = interval([a - b for a, b in zip(own, joint, strict=True)])
    text = f"{mean:+.1f} ± {half:.1f}"
    return f"**{text}**" if abs(mean) > half else text


def known_tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """One table for each optimizer: methods by scenario and task."""
    found = {(r["optimizer"], r["scenario"], r["task"], r["method"]): r for r in rows}
    optimizers = dict.fromkeys(key[0] for key in found)
    return "\n\n".join(table(optimizer, found) for optimizer in optimizers)


def table(optimizer: str, found: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    columns = [
        (scenario, task)
        for scenario in SCENARIOS
        for task in TASKS
        if (optimizer, scenario, task, "joint") in found
    ]
    methods = dict.fromkeys(key[3] for key in found if key[0] == optimizer)
    heads = [f"({scenario}) {SHORT[task]}" for scenario, task in columns]
    lines = [
        f"| {' | '.join([{'sgd': 'SGD', 'adam': 'Adam'}[optimizer], *heads])} |",
        f"|{'---|' * (len(heads) + 1)}",
    ]
    for method in methods:
        cells = [cell(found.get((optimizer, *column, method)), column[0]) for column in columns]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return "\n".join(lines)


def cell(row: Mapping[str, Any] | None, scenario: str) -> str:
    """Joint training's own score, or a difference to it, in bold where it is not zero."""
    if row is None:
        return "-"
    judged = f"without {SCENARIOS[scenario].absent}" if SCENARIOS[scenario].absent else "score"
    if row["method"] == "joint":
        return f"{row[judged]:.1f}"
    mean, half = row[f"{judged} - joint"]
    if mean is None:
        return "diverged"
    text = f"{mean:+.1f} ± {half:.1f}"
    return f"**{text}**" if abs(mean) > half else text


def lesion_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Dice of unseen cases, a mean over seeds, and the range of the mean of the regions."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["cohort"], row["dice"], row["method"]), []).append(row)
    lines = [
        "| lesions | Dice in the loss | method | WT | TC | ET | mean | of seeds, least to most |",
        f"|{'---|' * 8}",
    ]
    for key in sorted(groups, key=lambda k: (LESIONS.index(k[0]), k[1] != "regions", k[2])):
        own = groups[key]
        means = [
            statistics.mean(row[f"dice_{n}"] for row in own) for n in ("WT", "TC", "ET", "mean")
        ]
        each = sorted(row["dice_mean"] for row in own)
        spread = f"{each[0]:.3f} to {each[-1]:.3f} ({len(own)})"
        lines.append(f"| {' | '.join([*key, *(f'{m:.3f}' for m in means), spread])} |")
    return "\n".join(lines)


def lacking_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Dice by the modalities that are there at test, a mean over seeds, then over the subsets."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["missing"]), []).append(row)
    heads = [f"{' '.join(group)} ({len(own)})" for group, own in groups.items()]
    lines = [f"| {' | '.join(['there at test', *heads])} |", f"|{'---|' * (len(heads) + 1)}"]
    for subset in reversed(rows[0]["subsets"]):
        means = [statistics.mean(row["subsets"][subset] for row in own) for own in groups.values()]
        lines.append(f"| {' | '.join([subset, *(f'{mean:.3f}' for mean in means)])} |")
    for group in ("mean of 15", "mean with t1ce", "mean without t1ce"):
        means = [statistics.mean(row[group] for row in own) for own in groups.values()]
        lines.append(f"| {' | '.join([group, *(f'**{mean:.3f}**' for mean in means)])} |")
    return "\n".join(lines)


def cost_table(costs: Mapping[str, Any]) -> str:
    """Time and memory of a step against the joint step of the same network."""
    tasks = costs["tasks"]
    heads = [f"{name}, {what}" for name in tasks for what in ("time", "memory", "explained")]
    lines = [f"| {' | '.join(['method', *heads])} |", f"|{'---|' * (len(heads) + 1)}"]
    for method in dict.fromkeys(method for task in tasks.values() for method in task["rows"]):
        cells = [cell for task in tasks.values() for cell in cost_cells(task["rows"].get(method))]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return "\n".join(lines)


def cost_cells(row: Mapping[str, Any] | None) -> list[str]:
    """Ratios to the joint step, and measured over explained time."""
    if row is None:
        return ["-"] * 3
    return [f"{row[name]:.2f}" for name in ("time_ratio", "memory_ratio", "ratio")]


def nnunet_table(plans: Mapping[str, Any]) -> str:
    """Processor time and memory of a step in nnU-Net, and ratios to its own network, by plan."""
    lines = ["| patch, batch, encoders | network | time | ratio | peak memory | ratio |"]
    lines.append(f"|{'---|' * 6}")
    for found in plans.values():
        plan = found["plan"]
        size = "x".join(map(str, plan["patch"]))
        name = f"{size}, {plan['batch']}, {'residual' if plan['residual'] else 'plain'}"
        for side, row in found["sides"].items():
            time, memory = f"{row['seconds']:.3f} s", f"{row['peak_mb']:.0f} MB"
            ratios = [f"{row[key]:.2f}" for key in ("time_ratio", "memory_ratio")]
            lines.append(f"| {name} | {side} | {time} | {ratios[0]} | {memory} | {ratios[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
