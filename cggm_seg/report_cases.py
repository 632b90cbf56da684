"""Scores of cases in a report: headline, table, distribution, and missing modalities."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from cggm.comparison.statistics import bootstrap_interval
from cggm.reports.cards import Card, cards
from cggm.reports.charts import Line, line_chart
from cggm.reports.page import Section
from cggm.reports.tables import Column, plain_table, sortable_table
from cggm_seg.report_sets import REGIONS, CaseSet, Row

_HEADLINE = {
    "dice_mean": "mean Dice",
    **{f"dice_{r}": f"Dice {r}" for r in REGIONS},
    **{f"hd95_{r}": f"HD95 {r}" for r in REGIONS},
}


def headline_section(found: Sequence[CaseSet], validation: Row | None) -> Section:
    """Mean metrics over cases, with bootstrap intervals.

    Args:
        found: Sets of cases, the most important first.
        validation: Means without cases, shown where no set is there.
    """
    parts = [Markup("<h3>{}</h3>{}").format(s.title, _cards(s)) for s in found]
    if not parts and validation:
        means = [Card(_HEADLINE[k], v) for k, v in validation.items()]
        parts = [cards(means, "Means over the validation cases, which selected the weights.")]
    return Section("Results", Markup().join(parts))


def cases_section(scores: CaseSet) -> Section:
    """All cases in a sortable table, the worst first, and how their scores are spread.

    Args:
        scores: At least one case.
    """
    ordered = sorted(scores.rows, key=lambda case: (scores.dice[case], case))
    columns = [Column("case", ordered)] + [
        Column(
            _HEADLINE[m] + (" (mm)" if m.startswith("hd95") else ""),
            [scores.rows[case][m] for case in ordered],
            digits=2 if m.startswith("hd95") else 3,
            heat=m == "dice_mean",
            scale=(0.0, 1.0),
        )
        for m in _metrics(scores)
    ]
    caption = f"{len(ordered)} {scores.noun}, the worst mean Dice first"
    body = sortable_table(caption, columns, sorted_by=1) + _spread(scores)
    problems = Markup().join(Markup("<li>{}</li>").format(p) for p in scores.problems)
    left_out = Markup('<h3>Not scored</h3><ul class="warnings">{}</ul>').format(problems)
    return Section(f"{scores.title} case by case", body + (left_out if problems else ""))


def subsets_section(subsets: Mapping[str, Row]) -> Section:
    """Dice for every subset of modalities as a heat map.

    Args:
        subsets: Modalities joined by ``+`` to mean Dice by region; empty where not measured.
    """
    if len(subsets) < 2:
        return Section("Missing modalities", Markup())
    metrics = [
        Column(_HEADLINE[m], [row[m] for row in subsets.values()], heat=True, scale=(0.0, 1.0))
        for m in ("dice_mean", "dice_WT", "dice_TC", "dice_ET")
    ]
    head = Column("modalities", [key.replace("+", " + ") for key in subsets])
    table = plain_table(
        f"Mean Dice of the validation cases for all {len(subsets)} subsets of modalities",
        [head, *metrics],
    )
    note = "Absent modalities are zero-filled, as in training; the stronger the color, the better."
    return Section("Missing modalities", Markup('{}<p class="note">{}</p>').format(table, note))


def _metrics(scores: CaseSet) -> list[str]:
    """Those that every case has, in the order that they are shown."""
    return [m for m in _HEADLINE if all(m in row for row in scores.rows.values())]


def _cards(scores: CaseSet) -> Markup:
    shown = [
        _card(metric, [row[metric] for row in scores.rows.values()]) for metric in _metrics(scores)
    ]
    note = (
        f"Means over {len(scores.rows)} {scores.noun}; 95 % bootstrap intervals of the mean over "
        f"cases. WT, TC, ET: {', '.join(REGIONS.values())}."
    )
    return cards(shown, note)


def _card(metric: str, values: Sequence[float]) -> Card:
    distance = metric.startswith("hd95")
    interval = bootstrap_interval(values)
    mean = float(np.mean(values))
    return Card(_HEADLINE[metric], mean, interval, 1 if distance else 3, "mm" if distance else "")


def _spread(scores: CaseSet) -> Markup:
    """Each metric's own values in order, so that a line says how many cases lie below a value."""
    if len(scores.rows) < 5:
        return Markup()
    share = np.linspace(0, 100, len(scores.rows))
    lines = [
        Line(region, share, np.sort([row[f"dice_{region}"] for row in scores.rows.values()]), i)
        for i, region in enumerate(REGIONS)
    ]
    return Markup("<h3>Spread</h3>") + line_chart(
        "Dice of the cases, from worst to best", lines, x_label="% of the cases", named=True
    )
