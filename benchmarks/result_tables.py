"""Tables of the pages in docs/, from what was measured; benchmarks.pages writes them there."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.known import proof
from benchmarks.known.answer import KEYS, interval
from benchmarks.known.data import SCENARIOS, TASKS
from benchmarks.known.dense import CONTROLS, EVEN, FORMS
from benchmarks.known.rows import CONTROLS as CONTROLS_OF_RIVALS
from cggm.comparison.records import FinishedRun
from cggm.comparison.statistics import ranks_of

LESIONS = ("large", "small", "balls")
LOST = -1e6  # of a training that diverged, below any other
# Of a task that is no classification: key of its metric, factor of its figures, their digits.
MEASURES = {"mosi": ("mae", 1, 3)}
ACCURACY = ("acc", 100, 1)
SHORT = {"classification": "class.", "regression": "regr.", "segmentation": "segm."}


def over_subsets(run: FinishedRun, metric: str) -> float:
    """Mean of a metric over all subsets of modalities, that of all included."""
    return statistics.mean(row[metric] for row in (*run.subsets.values(), run.test))


def by_method(records: Iterable[FinishedRun]) -> dict[str, dict[int, FinishedRun]]:
    """Runs of each method by seed."""
    found: dict[str, dict[int, FinishedRun]] = {}
    for run in records:
        found.setdefault(run.method, {})[run.seed] = run
    return found


Read = Callable[[FinishedRun], float]


def paired(
    own: Mapping[int, FinishedRun], base: Mapping[int, FinishedRun], read: Read
) -> tuple[float, float]:
    """Mean difference of the seeds that both have, and half of its 95 % interval."""
    return interval([read(own[seed]) - read(base[seed]) for seed in own.keys() & base.keys()])


def gap_text(gap: tuple[float, float], digits: int = 3) -> str:
    """A difference, in bold where its interval excludes zero, without one of a single seed."""
    mean, half = gap
    if math.isinf(half):
        return f"{mean:+.{digits}f}"
    text = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return f"**{text}**" if abs(mean) > half else text


def brats_table(records: Sequence[FinishedRun]) -> str:
    """Dice by method, with all sequences and as means over all subsets of them."""
    runs = by_method(records)
    heads = ("all four", "mean of 15", "- joint", "- mrd", "WT", "TC", "ET", "seeds")
    lines = [f"| mean Dice, SIMULATED | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
    for method, own in runs.items():
        means = [
            statistics.mean(over_subsets(run, f"dice_{part}") for run in own.values())
            for part in ("mean", "WT", "TC", "ET")
        ]
        complete = statistics.mean(run.test["dice_mean"] for run in own.values())
        gaps = [
            "" if other == method else gap_text(paired(own, runs[other], subset_dice))
            for other in ("joint", "mrd")
        ]
        cells = [f"{complete:.3f}", f"{means[0]:.3f}", *gaps, *(f"{x:.3f}" for x in means[1:])]
        lines.append(f"| {' | '.join([method, *cells, str(len(own))])} |")
    return "\n".join(lines)


def subset_dice(run: FinishedRun) -> float:
    """Mean Dice over all subsets."""
    return over_subsets(run, "dice_mean")


def lacking_at_test_table(records: Sequence[FinishedRun]) -> str:
    """A metric with all modalities, and differences of its mean over all subsets, by seed."""
    tasks, methods = (
        list(dict.fromkeys(getattr(r, k) for r in records)) for k in ("task", "method")
    )
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for run in records:
        name, scale = MEASURES.get(run.task, ACCURACY)[:2]
        figures = (scale * run.test[name], scale * over_subsets(run, name))
        found.setdefault((run.task, run.method), {})[run.seed] = figures
    heads = [f"{t}, {what}" for t in tasks for what in ("all", "mean", "- joint", "- mrd_uniform")]
    lines = [f"| method | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
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
    digits = MEASURES.get(task, ACCURACY)[2]
    cells = [f"{statistics.mean(row[i] for row in own.values()):.{digits}f}" for i in range(2)]
    for other in ("joint", "mrd_uniform"):
        base = found[task, other]
        gaps = [own[seed][1] - base[seed][1] for seed in own.keys() & base.keys()]
        cells.append("" if other == method else gap_text(interval(gaps), digits))
    return cells


def dense_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Dice of joint training and differences to it, all modalities there and one missing."""
    found = {(row["scenario"], row["form"]): dense_figures(row) for row in rows}
    scenarios = [name for name in SCENARIOS if (name, "joint") in found]
    heads = [f"({name}) {what}" for name in scenarios for what in ("all", fewer(name))]
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


def fewer(scenario: str) -> str:
    """What is looked at beside all modalities."""
    absent = SCENARIOS[scenario].absent
    return f"without {absent}" if absent else "one missing"


def dense_figures(row: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Dice with all modalities, and without the absent one or the mean without any, by seed."""
    scores = row["scores"]
    missing = [own for key, own in scores.items() if key != "score"]
    mean = [statistics.mean(own) for own in zip(*missing, strict=True)]
    return list(scores["score"]), scores.get(fewer(row["scenario"]), mean)


def dense_cell(own: Sequence[float], joint: Sequence[float], form: str) -> str:
    if form == "joint":
        return f"{statistics.mean(own):.1f}"
    return gap_text(interval([a - b for a, b in zip(own, joint, strict=True)]), 1)


def dense_gains(rows: Iterable[Mapping[str, Any]], form: str) -> list[dict[str, Any]]:
    """A form less joint training and every control, by scenario, with all modalities and fewer."""
    found = {(row["scenario"], row["form"]): dense_figures(row) for row in rows}
    gains = []
    for scenario in SCENARIOS:
        own = found.get((scenario, form))
        others = [n for n in ("joint", "unimodal losses", EVEN, *CONTROLS) if n != form]
        for index, judged in enumerate(("all", fewer(scenario)) if own else ()):
            gaps = {
                name: [a - b for a, b in zip(own[index], base[index], strict=True)]
                for name in others
                if (base := found.get((scenario, name)))
            }
            gains.append({"scenario": scenario, "judged": judged, "differences": gaps})
    return gains


def gains_table(gains: Sequence[Mapping[str, Any]], form: str) -> str:
    """One row for each scenario and what is there, with marks of Holm's method."""
    names, kept = list(gains[0]["differences"]), proof.holm(gains)
    lines = [f"| {form} less | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for index, row in enumerate(gains):
        gaps = row["differences"]
        cells = [proof.gain(gaps[name], kept=(index, name) in kept) for name in names]
        lines.append(f"| ({row['scenario']}) {row['judged']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def judged_by(scenario: str) -> str:
    """Which score a scenario with a known answer is judged by."""
    absent = SCENARIOS[scenario].absent
    return f"without {absent}" if absent else "score"


def rank_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often each method is told from joint training, and its mean rank by task, 1 is best."""
    means, counts = mean_ranks(rows), told_apart(rows)
    heads = [f"{proof.OPTIMIZERS[o]} {SHORT[t]} ({len(own)})" for (o, t), own in means.items()]
    lines = [f"| {' | '.join(['mean rank', *heads, 'better', 'worse', 'of'])} |"]
    lines.append(f"|{'---|' * (len(heads) + 4)}")
    for name in dict.fromkeys(n for own in means.values() for n in own):
        cells = [f"{own[name]:.1f}" if name in own else "-" for own in means.values()]
        told = map(str, counts[name]) if name in counts else ["-"] * 3
        lines.append(f"| {' | '.join([name, *cells, *told])} |")
    return "\n".join(lines)


def mean_ranks(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """By optimizer and task, of each method over scenarios and seeds."""
    columns: dict[tuple[str, str], dict[tuple[str, int], dict[str, float]]] = {}
    for row in rows:
        own = columns.setdefault((row["optimizer"], row["task"]), {})
        for seed, gap in enumerate(row[f"{judged_by(row['scenario'])} - joint by seed"]):
            lost = gap is None or not math.isfinite(gap)
            place = own.setdefault((row["scenario"], seed), {})
            place[row["method"]] = LOST if lost else gap
    means = {}
    for key, places in columns.items():
        ranks = [ranks_of(place, lower_better=False) for place in places.values()]
        means[key] = {n: statistics.mean(rank[n] for rank in ranks) for n in ranks[0]}
    return means


def told_apart(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """In how many settings each method is better and worse than joint training, and of how many.

    A training that diverged makes the setting worse.
    """
    counts: dict[str, list[tuple[bool, bool]]] = {}
    for row in rows:
        if row["method"] != "joint":
            mean, half = row[f"{judged_by(row['scenario'])} - joint"]
            half = math.inf if half is None else half  # of one seed
            told = (False, True) if mean is None else (mean > half, -mean > half)
            counts.setdefault(row["method"], []).append(told)
    return {n: (*(sum(x) for x in zip(*own, strict=True)), len(own)) for n, own in counts.items()}


def controls_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Methods less the controls that replay their weights, one table for each optimizer."""
    found = {(*(row[key] for key in KEYS), row["method"]): row for row in rows}
    differences = []
    for (*setting, name), control in found.items():
        label = name.partition(": ")[0]
        if name in CONTROLS_OF_RIVALS and (own := found.get((*setting, label))):
            by_seed = f"{judged_by(control['scenario'])} - joint by seed"
            pairs = list(zip(own[by_seed], control[by_seed], strict=True))
            lost = any(None in pair for pair in pairs)
            gap = (None, None) if lost else interval([a - b for a, b in pairs])
            text = name.replace(": ", " less ")
            differences.append({**control, "method": text, by_seed.removesuffix(" by seed"): gap})
    return known_tables(differences)


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
        if any(key[:3] == (optimizer, scenario, task) for key in found)
    ]
    methods = dict.fromkeys(key[3] for key in found if key[0] == optimizer)
    heads = [f"({scenario}) {SHORT[task]}" for scenario, task in columns]
    lines = [
        f"| {' | '.join([proof.OPTIMIZERS[optimizer], *heads])} |",
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
    judged = judged_by(scenario)
    if row["method"] == "joint":
        return f"{row[judged]:.1f}"
    mean, half = row[f"{judged} - joint"]
    if mean is None:
        return "diverged"
    return gap_text((mean, math.inf if half is None else half), 1)


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
