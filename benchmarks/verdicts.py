"""Sentences of result pages, told from records of trainings, so that none outlives them."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.known.data import SCENARIOS
from benchmarks.known.dense import CONTROLS, EVEN, FORMS, LEVEL
from benchmarks.known.proof import OPTIMIZERS, above
from benchmarks.result_tables import (
    Read,
    by_method,
    dense_gains,
    gap_text,
    mean_ranks,
    over_subsets,
    paired,
    subset_dice,
    told_apart,
)
from cggm.comparison.records import FinishedRun
from cggm.comparison.statistics import Difference, paired_difference

NOTHING = "none"
Verdicts = Mapping[str, str]


def complete_verdict(records: Sequence[FinishedRun], metric: str = "acc") -> str:
    """What may be said of each method beside joint training, with all modalities and with fewer."""
    runs = {n: own for n, own in by_method(records).items() if not n.startswith("unimodal_")}
    of_test = differences(runs, lambda run: run.test[metric])
    some = {name: own for name, own in runs.items() if next(iter(own.values())).subsets}
    of_subsets = differences(some, lambda run: over_subsets(run, metric))
    return "\n".join(
        [
            f"- **With all modalities**, against joint training, in points: {told(of_test)}",
            f"- **As a mean over all subsets of them**: {told(of_subsets)}",
        ]
    )


def differences(runs: Mapping[str, Mapping[int, FinishedRun]], read: Read) -> dict[str, Difference]:
    """Of each method to joint training, by the rule of a comparison's tables."""
    values = {n: {seed: read(run) for seed, run in own.items()} for n, own in runs.items()}
    base = values.pop("joint")
    return {n: paired_difference(own, base, lower_better=False) for n, own in values.items()}


def told(found: Mapping[str, Difference]) -> str:
    """Those that are better and worse with their intervals, and how many are neither."""
    parts = []
    for verdict in ("better", "worse"):
        own = {name: d for name, d in found.items() if d.verdict == verdict}
        listed = ", ".join(f"`{name}` {points(d)}" for name, d in ordered(own))
        parts.append(f"{verdict} {listed or NOTHING}")
    rest = sum(d.verdict not in ("better", "worse") for d in found.values())
    return f"{'; '.join(parts)}; no difference shown for {rest} of {len(found)}."


def ordered(found: Mapping[str, Difference]) -> list[tuple[str, Difference]]:
    return sorted(found.items(), key=lambda item: -abs(item[1].mean))


def points(difference: Difference) -> str:
    """A difference in hundredths with its interval, which few seeds do not have."""
    mean, low, high = (100 * x for x in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f}" if math.isnan(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def complete_row(records: Sequence[FinishedRun]) -> str:
    """The row of docs/which_method.md about digits with all modalities."""
    runs = {n: own for n, own in by_method(records).items() if not n.startswith("unimodal_")}
    found = differences(runs, lambda run: run.test["acc"])
    better = ordered({n: d for n, d in found.items() if d.verdict == "better"})
    names = ", ".join(f"`{name}`" for name, _ in better) or "none; `joint`"
    gains = ", ".join(f"{points(d)}" for _, d in better) or "no difference shown"
    late = found.get("joint_late")
    told_from = f"late fusion as such, `joint_late`: {points(late)}" if late else "nothing"
    first = "real data, three descriptors of digits, all there"
    cells = (first, names, f"{gains}{' points' if better else ''}", told_from)
    return f"| {' | '.join(cells)} |"


def missing_verdict(
    records: Sequence[FinishedRun], metric: str, dropout: str, scale: float, digits: int
) -> str:
    """What may be said of means over the subsets of modalities, and with all of them, by task.

    Args:
        records: Of any tasks.
        metric: A key of the metrics of each subset and of ``test``.
        dropout: The method of modality dropout that others are told from, beside joint training.
        scale: Of the figures.
        digits: Behind the decimal point.
    """
    reads: dict[str, Read] = {
        "over the subsets": lambda run: scale * over_subsets(run, metric),
        "with all modalities": lambda run: scale * run.test[metric],
    }
    lines = []
    for task in dict.fromkeys(run.task for run in records):
        runs = by_method(run for run in records if run.task == task)
        for title, read in reads.items():
            means = {n: statistics.mean(map(read, own.values())) for n, own in runs.items()}
            best = max(means, key=means.__getitem__)
            parts = [f"`{best}` has the highest mean, {means[best]:.{digits}f}"]
            for other in ("joint", dropout):
                gaps = {n: paired(own, runs[other], read) for n, own in runs.items() if n != other}
                against = f"against `{other}` ({means[other]:.{digits}f})"
                parts.append(f"{against} {sides(gaps, digits)}")
            lines.append(f"- **{task}, {title}**: {'; '.join(parts)}.")
    return "\n".join(lines)


def sides(gaps: Mapping[str, tuple[float, float]], digits: int) -> str:
    """Methods whose interval lies above zero, below it, or neither."""
    sorts: tuple[tuple[str, Callable[[float, float], bool]], ...] = (
        ("better", lambda mean, half: mean > half),
        ("worse", lambda mean, half: mean < -half),
        ("not told from it", lambda mean, half: abs(mean) <= half),
    )
    parts = []
    for word, holds in sorts:
        own = [f"`{name}` {gap_text(g, digits)}" for name, g in gaps.items() if holds(*g)]
        if own or word != "not told from it":
            parts.append(f"{word}: {', '.join(own) or NOTHING}")
    return "; ".join(parts).replace("**", "")


def complete_dice(run: FinishedRun) -> float:
    """Mean Dice with all four sequences."""
    return run.test["dice_mean"]


def subsets_row(records: Sequence[FinishedRun]) -> str:
    """The row of docs/which_method.md about classes where any modality may be missing."""
    won, gains, others = [], [], []
    for task in dict.fromkeys(run.task for run in records):
        runs = by_method(run for run in records if run.task == task)
        means = {n: statistics.mean(map(points_of_subsets, r.values())) for n, r in runs.items()}
        best = max(means, key=means.__getitem__)
        won.append(f"{task}: `{best}` {means[best]:.1f}, `guided` {means['guided']:.1f}")
        gap = paired(runs["guided"], runs["joint"], points_of_subsets)
        gains.append(f"{task}: {gap_text(gap, 1)}")
        rest = sorted(means.keys() - {"joint", "guided", best}, key=lambda n: -means[n])
        others.append(f"{task}: {', '.join(f'`{n}` {means[n]:.1f}' for n in rest)}")
    cells = (
        "real data, any modality may be missing at test: digits, activities",
        "; ".join(won),
        f"`guided`, points of the mean over subsets: {'; '.join(gains)}",
        "; ".join(others),
    )
    return f"| {' | '.join(cells)} |"


def points_of_subsets(run: FinishedRun) -> float:
    """Mean accuracy over all subsets, in percent."""
    return 100 * over_subsets(run, "acc")


def brats_row(records: Sequence[FinishedRun]) -> str:
    """The row of docs/which_method.md about segmentation where sequences are missing."""
    runs = by_method(records)
    pairs = {
        name: tuple(
            statistics.mean(map(read, own.values())) for read in (subset_dice, complete_dice)
        )
        for name, own in runs.items()
    }
    rest = sorted(pairs, key=lambda name: -pairs[name][0])
    best = rest.pop(0)
    gaps = {name: paired(runs[best], runs[name], subset_dice) for name in rest}
    close = [name for name in rest if gaps[name][0] <= gaps[name][1]]
    won = f"`{best}`" + (f"; not told from it: {listed(close)}" if close else "")
    (mean, every), (base, all_of_base) = pairs[best], pairs["joint"]
    gain = f"mean Dice over 15 subsets {mean:.3f} for {base:.3f}; with all four {every:.3f} for "
    others = ", ".join(f"`{n}` {pairs[n][0]:.3f}, {pairs[n][1]:.3f}" for n in rest if n != "joint")
    cells = (
        "a sequence missing at test, segmentation (simulated lesions)",
        won,
        f"{gain}{all_of_base:.3f}; {seeds_text(runs.values())}",
        f"over the subsets, with all four: {others}",
    )
    return f"| {' | '.join(cells)} |"


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def seeds_text(runs: Iterable[Mapping[int, FinishedRun]]) -> str:
    """How many seeds methods have."""
    counts = sorted({len(own) for own in runs})
    text = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    return f"{text} seed{'' if counts == [1] else 's'}"


def dense_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """In how many columns dense forms are told from joint training, and one from its controls."""
    parts = []
    for form in FORMS:
        gaps = [row["differences"].get("joint") for row in dense_gains(rows, form)]
        known = [gap for gap in gaps if gap is not None and form not in ("joint", *CONTROLS)]
        if known:
            worse = sum(above([-x for x in gap]) for gap in known)
            better = sum(map(above, known))
            parts.append(f"{form}: better in {better}, worse in {worse} of {len(known)}")
    gains = [row["differences"] for row in dense_gains(rows, LEVEL)]
    both = sum(all(above(row[n]) for n in ("joint", *CONTROLS)) for row in gains)
    even = sum(above(row[EVEN]) for row in gains)
    behind = sum(above([-x for x in row[EVEN]]) for row in gains)
    return (
        f"- **Against joint training**, by the intervals of one difference: {'; '.join(parts)}.\n"
        f"- **By level** is better than joint training and all its controls in {both} of "
        f"{len(gains)} columns; better than the even pass in {even}, worse in {behind}."
    )


def known_verdict(rows: Sequence[Mapping[str, Any]], first: int = 5) -> str:
    """Who leads the mean ranks, and who gains and loses against joint training, by setting."""
    lines = []
    for (optimizer, task), own in mean_ranks(rows).items():
        ranks = sorted(own.items(), key=lambda item: item[1])
        leading = ", ".join(f"{name} ({rank:.1f})" for name, rank in ranks[:first])
        place = [name for name, _ in ranks].index("joint") + 1
        lines.append(
            f"- **{OPTIMIZERS[optimizer]}, {task}**: the best mean ranks have {leading}; joint "
            f"training is number {place} of {len(own)}."
        )
    counts = told_apart(rows)
    never = [name for name, (better, worse, _) in counts.items() if better and not worse]
    never.sort(key=lambda name: -counts[name][0])
    behind = [name for name, (better, worse, _) in counts.items() if worse > better]
    told = ", ".join(f"{name} ({counts[name][0]} of {counts[name][2]})" for name in never)
    lines.append(f"- **Better than joint training in some settings and worse in none**: {told}.")
    told = ", ".join(f"{n} ({counts[n][0]} better, {counts[n][1]} worse)" for n in behind)
    lines.append(f"- **More often worse than better**: {told or NOTHING}.")
    lines.append(f"- **In (d) with A there, where nothing should be lost**, worse: {paid(rows)}.")
    return "\n".join(lines)


def paid(rows: Iterable[Mapping[str, Any]]) -> str:
    """Which methods lose with all modalities where a scenario is judged without one, and how often.

    A training that diverged has no figure and is left out.
    """
    counts: dict[str, list[bool]] = {}
    for row in rows:
        mean, half = row["score - joint"]
        if SCENARIOS[row["scenario"]].absent and row["method"] != "joint" and mean is not None:
            counts.setdefault(row["method"], []).append(
                -mean > (math.inf if half is None else half)
            )
    told = [f"{name} ({sum(own)} of {len(own)})" for name, own in counts.items() if any(own)]
    return ", ".join(told) or NOTHING
