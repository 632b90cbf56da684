"""Modality balance: what each encoder's head scored, and what the method did with it, over time."""

from collections.abc import Mapping

from markupsafe import Markup

from cggm.reports.charts import Line, legend, line_chart
from cggm.reports.page import Section
from cggm.reports.reading import read_balance
from cggm.reports.series import Records, by_modality, column, modalities
from cggm.runs.curves import running_mean

_CHARTS = {
    "score": ("Score of each head", "score", None),
    "term": ("Factor B on each encoder's gradient", "raw_term", 1.0),
    "gate": ("Gate: a head's signal above chance", "gate", None),
    "cosine": ("Cosine of head's and network's gradient", "cosine", 0.0),
    "gradient_norm": ("Norm of each encoder's gradient", "gradient_norm", None),
}
_NOTES = {
    "term": "lines: in use; dots: raw ratio of equation (7)",
    "gate": "as a share of the best head's signal",
}
_MEAN = "lines: running means over 4 % of the run; dots: single steps"


def balance_section(records: Records) -> Section:
    """Charts of all readings, and what they say in plain language.

    Args:
        records: Lines of ``balance.jsonl``.
    """
    charts = [_chart(records, key) for key in _CHARTS]
    shown = [chart for chart in charts if chart]
    if not shown:
        return Section("Modality balance", Markup())
    sentences = Markup().join(Markup("<li>{}</li>").format(s) for s in read_balance(records))
    body = Markup(
        '<ul class="reading">{}</ul>{}<p class="note">{}</p><div class="charts">{}</div>'
    ).format(sentences, legend(_colors(records)), _MEAN.capitalize() + ".", Markup().join(shown))
    return Section("Modality balance", body)


def _colors(records: Records) -> Mapping[str, int]:
    return {name: i % 7 for i, name in enumerate(modalities(records))}


def _chart(records: Records, key: str) -> Markup:
    title, raw, level = _CHARTS[key]
    x, window = column(records, "iteration"), len(records) // 25
    values, single = by_modality(records, key), by_modality(records, raw)
    colors = _colors(records)
    lines = [
        Line(name, x, running_mean(own, window), colors[name], single.get(name))
        for name, own in values.items()
    ]
    return line_chart(title, lines, x_label="step", note=_NOTES.get(key, ""), level=level)
